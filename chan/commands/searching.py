"""Commands that search: `chan index`, `search` and `serve`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from chan.choices import SearchEngine
from chan.options import DataOrNone, Features, app
from data_tools.console import print_json
from data_tools.errors import UsageError
from data_tools.options import (
    INPUT,
    OUTPUT,
    RUN,
    Device,
    Json,
    argument,
    command,
    flag,
    option,
)

if TYPE_CHECKING:
    pass


@command(app, "chan index runs/chan --data data/scenes --out runs/scenes.index")
def index(
    run: Annotated[
        Path | None, argument("[RUN]", "Run folder; needed for a new index, which keeps a copy of its model.")
    ] = None,
    *,
    data: DataOrNone = None,
    features: Features = None,
    ids: Annotated[
        Path | None,
        option(INPUT, "Index only the images with the ids in this file, one id per line.", metavar="FILE"),
    ] = None,
    images: Annotated[
        Path | None,
        option(INPUT, "Folder of the pictures.", metavar="DIR", show_default="the images folder in --data"),
    ] = None,
    add: Annotated[bool, flag(RUN, "Add the images that the index does not hold yet.", "--add")] = False,
    remove: Annotated[
        list[str] | None, option(RUN, "Remove the image with this id; may be repeated.", metavar="ID")
    ] = None,
    compact: Annotated[
        bool, flag(RUN, "Rewrite the index as one file without the removed images.", "--compact")
    ] = False,
    device: Device = "auto",
    out: Annotated[Path, option(OUTPUT, "Index to make or change.", metavar="INDEX")],
    as_json: Json = False,
) -> None:
    """Make an index of the images of a features file, to search in; captions are not needed.

    With --add, --remove or --compact an index is changed; killed at any moment it stays whole.
    """
    if data is None and not (remove or compact):
        raise UsageError("--data is needed: the folder with the features to index")
    if run is None and data is not None and not add:
        raise UsageError("RUN is needed for a new index; --add adds to the one in --out")
    from chan.retrieval import indexing

    done = None
    if data is not None:
        collection = indexing.open_collection(data, features, images, ids)
        if add:
            done = indexing.add_to_index(out, collection, device)
        else:
            assert run is not None
            done = indexing.create_index(out, run, collection, device)
    if remove:
        done = indexing.remove_from_index(out, remove)
    if compact:
        done = indexing.compact_index(out)
    assert done is not None
    if as_json:
        print_json({"index": str(out), **{k: v for k, v in asdict(done).items() if k != "folder"}})
    else:
        print(done)


@command(app, 'chan search runs/scenes.index "a red circle left of a blue square"')
def search(
    index: Annotated[Path, argument("INDEX", "Index, made by chan index, or hf://OWNER/NAME@REVISION.")],
    queries: Annotated[list[str] | None, argument("[QUERY]...", "Sentences to search for.")] = None,
    *,
    queries_file: Annotated[
        Path | None, option(INPUT, "Text file with one sentence per line.", "--queries", metavar="FILE")
    ] = None,
    image: Annotated[
        str | None,
        option(INPUT, "Search by this image: goes with --region, --at or --captions.", metavar="ID"),
    ] = None,
    region: Annotated[
        int | None, option(INPUT, "Find images that hold a region like this one of --image.", metavar="N", min=0)
    ] = None,
    at: Annotated[
        str | None,
        option(INPUT, "The same for the smallest region of --image at a point, in pixels.", metavar="X,Y"),
    ] = None,
    captions: Annotated[
        Path | None,
        option(INPUT, "Find the sentences that fit --image best in this file, one per line.", metavar="FILE"),
    ] = None,
    k: Annotated[int, option(OUTPUT, "Number of results.", "-k", metavar="N", min=1)] = 10,
    out: Annotated[
        Path | None,
        option(OUTPUT, "Also write the results to this page (FILE.html) or picture (FILE.png).", metavar="FILE"),
    ] = None,
    exact: Annotated[
        bool, flag(RUN, "Score every image, also where the search by candidates is faster.", "--exact")
    ] = False,
    engine: Annotated[
        SearchEngine, option(RUN, "Search in this process, or on a Ray cluster that shares the images.")
    ] = SearchEngine.local,
    ray_address: Annotated[
        str,
        option(
            RUN,
            "Address of a running Ray cluster, or auto; goes with --engine ray.",
            metavar="ADDRESS",
            show_default="a new cluster on this machine",
        ),
    ] = "",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the images that fit a sentence best, and the region that each word found in them."""
    from chan.retrieval import page, reporting
    from chan.retrieval.retriever import open_index
    from data_tools.files import check_writable

    asked = [*(queries or []), *([] if queries_file is None else reporting.read_lines(queries_file))]
    by_image = [option for option in (region, at, captions) if option is not None]
    if (image is None) == (not asked) or len(by_image) != (image is not None):
        raise UsageError("give sentences, or --image with one of --region, --at and --captions")
    if out is not None:
        if captions is not None or out.suffix not in ((".html", ".png") if image is None else (".html",)):
            expected = "a page, FILE.html" + (", or a picture, FILE.png" if image is None else "")
            raise UsageError(f"--out {out}: expected {expected}, of the images that a search finds")
        check_writable(out)
    if ray_address and engine is SearchEngine.local:
        raise UsageError("--ray-address goes with --engine ray")
    searched = open_index(index, device)
    if engine is SearchEngine.ray:
        from chan.retrieval.ray_engine import RaySearch

        searched.engine = RaySearch(searched.index, searched.retriever.device.type, ray_address)
    if captions is not None and image is not None:
        found = searched.captions_for(image, reporting.read_lines(captions), k)
        reporting.print_captions(image, found, as_json)
        return
    if image is not None:
        number = region if region is not None else searched.region_at(image, *reporting.parse_point(at or ""))
        results = searched.like(image, number, k, exact)
        reporting.print_like(image, number, results, as_json)
        if out is not None:
            page.save_like(searched, image, number, results, out)
            if not as_json:
                print(out)
        return
    encoded = [searched.query(text) for text in asked]
    answers = searched.search_all(encoded, k, exact)
    reporting.print_results(encoded, answers, as_json)
    if out is not None and out.suffix == ".png":
        from chan.retrieval import drawing, explanation

        rows = [explanation.from_results(*pair) for pair in zip(encoded, answers, strict=True)]
        drawing.save(drawing.draw(rows), out)
    elif out is not None:
        page.save_sentences(searched, encoded, answers, out)
    if out is not None and not as_json:
        print(out)


@command(app, "chan serve runs/scenes.index")
def serve(
    index: Annotated[Path, argument("INDEX", "Index, made by chan index, or hf://OWNER/NAME@REVISION.")],
    *,
    host: Annotated[
        str,
        option(RUN, "Address to listen on; any but this machine's own asks visitors for a token.", metavar="HOST"),
    ] = "127.0.0.1",
    port: Annotated[
        int, option(RUN, "Port to listen on; 0 takes a free one.", metavar="N", min=0, max=65535)
    ] = 8000,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Serve a page to search an index: hover over a word to see its region in every picture."""
    from chan.retrieval.retriever import open_index
    from chan.retrieval.server.running import serve as serve_index

    def announce(address: str) -> None:
        if as_json:
            print_json({"index": str(index), "address": address})
        else:
            print(f"{index}: {address} (Ctrl-C ends it)", flush=True)

    serve_index(open_index(index, device), host, port, announce)
