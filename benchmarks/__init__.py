"""Speed, memory and start-up of Vitrail, with its peers measured in the same run.

    python -m benchmarks                 the set: every topic on a CPU in short, in a quarter of an hour
    python -m benchmarks.throughput      images per second and peak memory beside timm, transformers, torchvision
    python -m benchmarks.startup         seconds until the command, an import, an answer, a first step are there
    python -m benchmarks.weights         loading, predicting, converting
    python -m benchmarks.inference       forward passes, plain and int8, beside timm, eager and compiled
    python -m benchmarks.exporting       exported files beside timm's model: ONNX Runtime, OpenVINO, 8 bits
    python -m benchmarks.loader          the data path alone, beside timm's loader and torchvision's folders
    python -m benchmarks.remote          the same from a store over HTTP, beside litData, webdataset and MosaicML
    python -m benchmarks.training        a training step beside timm's training script and a bare loop
    python -m benchmarks.accuracy        CIFAR-10 from scratch beside timm's training script
    python -m benchmarks.fast            time to accuracy: the recipe `fast`, a bare loop and timm's training script
    python -m benchmarks.gpu             how well training uses a GPU, beside timm and transformers, in ten minutes
    python -m benchmarks.gpu_profile     where the time of one of its steps goes
    python -m benchmarks.packing         packing photographs into tars, beside img2dataset and litData
    python -m benchmarks.planning        what vitrail plan foretells beside what is measured
    python -m benchmarks.unlabelled      what pre-training is worth: neighbours, probes, few labels, small batches
    python -m benchmarks.faithful        whether maps of where a model looks are faithful
    python -m benchmarks.collapse        whether pre-training that learns nothing is named, and no other
    python -m benchmarks.transfer        fine-tuning beside training from scratch
    python -m benchmarks.versions OTHER  this checkout beside another one, before and after a change

Run from the repository's root, with the `dev` extra installed. Nothing is downloaded.
"""
