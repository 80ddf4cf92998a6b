"""A tour of the library in six stops, which writes PNGs; `pip install .` is all it needs.

python examples/library_tour.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np

from cfgdiff.runtime import BadInput, Blend, Edit, draw, generate, load_bundle, open_engine, to_images


def save(pictures: np.ndarray, folder: Path, name: str) -> None:
    """Pictures (N, H, W, C) uint8 side by side, as one PNG."""
    to_images(np.concatenate(list(pictures), axis=1)[None])[0].save(folder / f"{name}.png")
    print(f"{name}: {len(pictures)} pictures")


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    # 1. A bundle is a model with all that describes it; without a path it is the packaged one.
    bundle = load_bundle()
    print(f"{bundle.name}: {len(bundle.class_names)} classes, {bundle.image_shape}, {bundle.defaults}")

    # 2. One call, one array, by the fastest engine of this machine.
    ships = draw(bundle, ["ship"] * 4, seed=[1, 1, 1, 1], guidance=[1, 2, 4, 8])  # one latent, more and more guided
    save(ships, folder, "guidance")

    # 3. Several calls share an engine. Picture i depends on (seed, i), its class and its guidance, not on the others.
    with open_engine(bundle, "cpu", "float32") as engine:
        frogs = draw(bundle, ["frog"] * 4, engine, seed=7)
        save(frogs, folder, "frogs")
        alone = draw(bundle, ["frog"], engine, seed=7, indices=[3])[0]
        print(f"picture 3 alone: differs by {np.abs(alone.astype(int) - frogs[3]).max()} grey levels")

        # 4. From one latent and one class to another: picture i is shares[i] of the way.
        blend = Blend(seed=2, classes=["dog"] * 5, shares=[0, 0.25, 0.5, 0.75, 1])
        save(draw(bundle, ["cat"] * 5, engine, seed=1, indices=[0] * 5, blend=blend), folder, "cat_to_dog")

        # 5. Start from a picture instead of noise, and draw only where the mask is set.
        mask = np.zeros(frogs.shape[1:3], bool)
        mask[:, mask.shape[1] // 2 :] = True
        edits = [Edit(frogs[0], strength=0.6), Edit(frogs[0], strength=1.0, mask=mask)]
        edited = [draw(bundle, ["horse"], engine, edit=edit)[0] for edit in edits]
        save(np.stack([frogs[0], *edited]), folder, "frog_to_horse")

        # 6. Batches arrive as they finish, and `watch` sees the clean pictures that each evaluation implies.
        seen: list[np.ndarray] = []
        for first, pictures in generate(engine, bundle, ["truck"] * 4, batch=2, watch=lambda _, x0: seen.append(x0)):
            print(f"pictures {first} .. {first + len(pictures) - 1}")
        # (evaluations, C, H, W), of the first batch's first picture
        truck = np.stack([x0[0] for x0 in seen[: len(seen) // 2]])
        save(np.rint((truck.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1), folder, "denoising")

    # Mistakes are one line that says what was expected.
    try:
        draw(bundle, ["frgo"])
    except BadInput as error:
        print(f"BadInput: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tour"))
