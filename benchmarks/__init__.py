"""Speed, memory and start-up of Vitrail, with its peers measured in the same run.

    python -m benchmarks                 everything, with modest defaults
    python -m benchmarks.throughput      images per second and peak memory beside timm, transformers, torchvision
    python -m benchmarks.startup         seconds until the command, the import and the model are there

Run from the repository's root, with the `dev` extra installed. Nothing is downloaded.
"""
