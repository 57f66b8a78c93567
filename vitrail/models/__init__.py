"""The models: the Vision Transformer, its ResNet, their parts and the names under which people know them."""

from vitrail.models import resnet, vit

Config = vit.Config | resnet.Config
Model = vit.ViT | resnet.ResNet
