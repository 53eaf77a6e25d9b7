"""How the datasets beside this file were prepared: ``python make.py``.

With tensorflow-datasets 4.9.10 and tensorflow 2.21.0, which nothing else here needs.
"""

import shutil
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds  # type: ignore[import-not-found]

HERE = Path(__file__).parent
SHAPE = (None, 32, 48, 3)
IMAGE = tfds.features.Image(shape=SHAPE[1:], encoding_format="jpeg")
VIDEOS = {
    "toy_video": ("video", tfds.features.Video(shape=SHAPE), "tfrecord"),
    "toy_frames": ("frames", tfds.features.Sequence(IMAGE), "array_record"),
    "toy_tensor": ("video", tfds.features.Tensor(shape=SHAPE, dtype=np.uint8), "tfrecord"),
}


def prepare(name: str) -> None:
    dataset = name
    feature, connector, file_format = VIDEOS[name]
    splits = {"train": 3} if file_format == "array_record" else {"train": 3, "test": 1}

    class Builder(tfds.core.GeneratorBasedBuilder):
        name = dataset
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                feature: connector,
                "label": tfds.features.ClassLabel(names=["sit", "run"]),
                "caption": tfds.features.Text(),
                "score": np.float32,
                "key": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(count) for split, count in splits.items()}

        def _generate_examples(self, count):
            for i in range(count):
                frames = [np.full(SHAPE[1:], 40 * i + 10 * j, np.uint8) for j in range(3 + i)]
                yield (
                    i,
                    {
                        feature: np.stack(frames) if name == "toy_tensor" else frames,
                        "label": i % 2,
                        "caption": f"clip {i} ü",
                        "score": 0.5 * i,
                        "key": f"k{i}",
                    },
                )

    shutil.rmtree(HERE / name, ignore_errors=True)
    Builder(data_dir=HERE, file_format=file_format).download_and_prepare()
    shutil.rmtree(HERE / "downloads", ignore_errors=True)


if __name__ == "__main__":
    for each in VIDEOS:
        prepare(each)
