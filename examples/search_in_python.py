"""Find the videos of a folder that fit a text best, without an index.

    python examples/search_in_python.py MODEL VIDEOS "a dog runs in the snow"

MODEL is a model folder, an artifact of the workspace, or a CLIP of the hub. For many videos, or many
searches, `alpro index add` embeds them once (docs/search.md).
"""

import argparse
from pathlib import Path

import numpy as np

from alpro import Model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("videos", type=Path)
    parser.add_argument("text")
    parser.add_argument("-k", type=int, default=5, help="number of results")
    arguments = parser.parse_args()

    model = Model.load(arguments.model)
    files = []
    embeddings = []
    for video in model.stream(sorted(arguments.videos.rglob("*.mp4"))):
        if video.embedding is None:
            print(f"left out: {video.file}: {video.error}")
        else:
            files.append(video.file)
            embeddings.append(video.embedding)
    if not files:
        parser.error(f"{arguments.videos} has no .mp4 that can be decoded")

    # (1, N): the similarity of the text and each video.
    (similarity,) = model.similarity(arguments.text, np.stack(embeddings))
    for i in similarity.argsort()[::-1][: arguments.k]:
        print(f"{similarity[i]:.3f}  {files[i]}")


if __name__ == "__main__":
    main()
