"""The drawn scenes as a data set in COCO's form, as annotation tools export them.

    data-tools scenes --out data/scenes
    python -m examples.coco_scenes data/scenes --out data/own

It is for trying docs/own_detectors.md without pictures of one's own: three classes whose ids are not consecutive,
the colours as attributes, and triangles that nobody annotated, so that some images have no objects.
"""

import argparse
import json
import shutil
from pathlib import Path

CATEGORIES = {"circle": 3, "square": 12, "star": 40}
COLOURS = {"red": 5, "orange": 6, "yellow": 9, "green": 12, "blue": 31, "purple": 40, "black": 41, "white": 57}


def write_coco(scenes: Path, out: Path) -> None:
    """Write `OUT/annotations/SPLIT.json` in COCO's form, and the images to `OUT/images/SPLIT`.

    Args:
        scenes: what `data-tools scenes` wrote.
        out: the folder of the new data set.
    """
    (out / "annotations").mkdir(parents=True)
    for path in sorted((scenes / "annotations").glob("*.json")):
        document, pictures = json.loads(path.read_text()), out / "images" / path.stem
        classes, attributes = document["classes"], document["attributes"]
        pictures.mkdir(parents=True)
        images: list[dict[str, object]] = []
        annotations: list[dict[str, object]] = []
        for number, image in enumerate(document["images"], start=1):
            shutil.copy(scenes / "images" / image["file_name"], pictures)
            sides = {"height": image["height"], "width": image["width"]}
            images.append({"id": number, "file_name": Path(image["file_name"]).name, **sides})
            for item in image["annotations"]:
                if classes[item["category_id"]] not in CATEGORIES:
                    continue
                x1, y1, x2, y2 = item["bbox"]
                names = [attributes[attribute] for attribute in item["attribute_ids"]]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": CATEGORIES[classes[item["category_id"]]],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": 0,
                        "attribute_ids": [COLOURS[name] for name in names if name in COLOURS],
                    }
                )
        lists = {"categories": CATEGORIES, "attributes": COLOURS}
        named = {key: [{"id": n, "name": name} for name, n in ids.items()] for key, ids in lists.items()}
        (out / "annotations" / path.name).write_text(
            json.dumps({**named, "images": images, "annotations": annotations})
        )


def main() -> None:
    """Parse the arguments and write the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, help="what data-tools scenes wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new data set")
    arguments = parser.parse_args()
    write_coco(arguments.scenes, arguments.out)
    print(f"{arguments.out}: annotations and images of {', '.join(CATEGORIES)}")


if __name__ == "__main__":
    main()
