"""Weights in and out of files, each format with its own numerics. FORMATS are asked in turn what a place holds."""

from vitrail.weights.folder import ModelFolder
from vitrail.weights.format import Format
from vitrail.weights.google import Google
from vitrail.weights.huggingface import HuggingFace
from vitrail.weights.timm import Timm
from vitrail.weights.torchvision import Torchvision

FORMATS: tuple[Format, ...] = (ModelFolder(), Google(), HuggingFace(), Timm(), Torchvision())
