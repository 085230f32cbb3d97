"""Tables in every accepted form, and tables that only look like one."""

import csv
import io
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.captions.collection import clean_caption
from data_tools.captions.tables import read_caption_table
from data_tools.command_line import data_tools as entry
from data_tools.errors import InputError, UsageError

CAPTIONS = ["Two men push a cart .", "A cart , uphill .", "Men at work .", "Somebody's cart .", 'A "cart" .']


def read(path, content, notes=None):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_caption_table(path, 0, 0, seed=1, notes=notes)


def as_csv(rows, delimiter=",", end="\r\n"):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(rows)
    return text.getvalue()


def delimited(delimiter):
    return lambda images: as_csv([["image", "caption"], *((i, c) for i, cs in images for c in cs)], delimiter)


def wide(images):
    longest = max(len(captions) for _, captions in images)
    header = ["image", *(f"caption_{n}" for n in range(longest))]
    return as_csv([header, *([i, *cs, *[""] * (longest - len(cs))] for i, cs in images)], end="\n")


def json_list(images):
    rows = [
        [json.dumps(cs), json.dumps(list(range(10 * n, 10 * n + len(cs)))), i] for n, (i, cs) in enumerate(images)
    ]
    return as_csv([["raw", "sentids", "filename"], *rows])


def token(images):
    return "".join(f"{i}#{n}\t{c}\n" for i, cs in images for n, c in enumerate(cs))


def bars(images):
    rows = "".join(f"{i}| {n}| {c}\n" for i, cs in images for n, c in enumerate(cs))
    return f"image_name| comment_number| comment\n{rows}"


def tabs(images):
    return "image\tcaption\n" + "".join(f"{i}\t{c}\n" for i, cs in images for c in cs)


def json_lines(images):
    return "".join(json.dumps({"image": i, "caption": c}) + "\n" for i, cs in images for c in cs)


def json_lists(images):
    return "\n".join(json.dumps({"file_name": i, "captions": cs}, ensure_ascii=False) for i, cs in images)


FORMS = {
    "comma.csv": delimited(","), "semicolon.csv": delimited(";"), "bar.csv": delimited("|"), "wide.csv": wide,
    "list.csv": json_list, "token.txt": token, "flickr30k.token": token, "results.csv": bars, "tab.tsv": tabs,
    "tab.csv": tabs, "lines.jsonl": json_lines, "lists.jsonl": json_lists,
}  # fmt: skip
NO_TABS_OR_BARS = st.characters(
    codec="utf-8", exclude_characters='\t|"[({', exclude_categories=["Cc", "Cs", "Zl", "Zp"]
)
TEXTS = st.text(NO_TABS_OR_BARS, min_size=1, max_size=20).filter(lambda text: clean_caption(text) != "")
WORDS = st.sampled_from([*CAPTIONS, "- ; , # ' / \\ *", "1", "null", "[A] man", "é 图 \U0001f600"]) | TEXTS


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=40, deadline=None)
@given(captions=st.lists(st.lists(WORDS, min_size=1, max_size=6), min_size=1, max_size=4))
def test_what_is_written_in_any_form_is_read_as_it_was(tmp_path_factory, form, captions):
    images = [(f"a/{n}.jpg", texts) for n, texts in enumerate(captions)]
    found = read(tmp_path_factory.mktemp("table") / form, FORMS[form](images))
    assert [(i.file, list(i.captions)) for i in found] == [(i, list(map(clean_caption, cs))) for i, cs in images]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_the_encodings_of_spreadsheets_are_read(tmp_path, form, encoding):
    text = FORMS[form]([("1.jpg", ["ein süßer Hund", "noch einer"])])
    (found,) = read(tmp_path / form, text.encode(encoding))
    assert found.captions == ("ein süßer Hund", "noch einer")


def test_the_table_of_hugging_face_has_captions_ids_and_splits(tmp_path):
    rows = [[json.dumps(CAPTIONS), "[0, 1, 2, 3, 4]", "val", "1001.jpg", 0], ['["a"]', "[5]", "train", "2.jpg", 1]]
    one, two = read(tmp_path / "a.csv", as_csv([["raw", "sentids", "split", "filename", "img_id"], *rows]))
    assert (one.image_id, one.split, list(one.captions)) == ("1001", "dev", CAPTIONS)
    assert one.caption_ids == ("0", "1", "2", "3", "4")
    assert (two.split, two.captions, two.caption_ids) == ("train", ("a",), ("5",))


def test_kaggles_line_without_its_bar_is_read_and_named(monkeypatch, capsys, tmp_path):
    table = bars([("1.jpg", CAPTIONS), ("2.jpg", ["A boat .", "Low tide ."])]).replace("| Low tide", "   Low tide")
    (tmp_path / "results.csv").write_text(table)
    arguments = ["splits", tmp_path / "results.csv", "--out", tmp_path / "data", "--dev", "0", "--test", "0"]
    monkeypatch.setattr(sys, "argv", ["data-tools", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        entry()
    assert not ended.value.code
    assert "results.csv, line 8: " in capsys.readouterr().err
    captions = (tmp_path / "data" / "precomp" / "train_caps.txt").read_text().splitlines()
    assert captions == [*CAPTIONS, "A boat .", "Low tide ."]


BAR = "image_name| comment_number| comment\n1.jpg| 0| a\n"
LIST = "image,caption\n1.jpg,a cat\n2.jpg,"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(
            ("a.csv", LIST + as_csv([[cell]]), "line 3: caption: looks like a list")
            for cell in (
                str(CAPTIONS),
                str(tuple(CAPTIONS)),
                "['a' 'b'\n 'c']",
                "array(['a', 'b'], dtype=object)",
                "[a]",
                "{'a', 'b'}",
                "['a', 'b', ...",
                'c("a", "b")',
                "[" * 50_000 + "]",
                "[1 2 3]",
                "[\"a\", 'b']",
            )
        ),
        ("a.csv", LIST + as_csv([['["a", 7]']]), "line 3: caption 2 of the list: expected text"),
        ("a.csv", LIST + as_csv([['["a", ["b"]]']]), "line 3: caption 2 of the list: expected text"),
        ("a.csv", LIST + as_csv([['["a", ""]']]), "line 3: caption 2 of the list: expected text"),
        ("a.csv", LIST + "[]", "line 3: the caption of 2.jpg is empty"),
        ("a.csv", 'image,caption,sentids\n1.jpg,"[""a"", ""b""]",[1]', "line 2: caption_id: 1 ids for 2"),
        ("a.csv", 'image,caption,sentids\n1.jpg,"[""a"", ""b""]",[1 2]', "line 2: caption_id: looks like"),
        ("a.csv", 'image,caption,sentids\n1.jpg,"[""a"", ""b""]","[1, NaN]"', "line 2: caption_id: expected text"),
        ("a.csv", "image,caption,capid\n1.jpg,a,7\n1.jpg,b,7\n", "line 3: caption id 7 is on line 2 too"),
        ("a.csv", 'image,caption,capid\n1.jpg,a,"7\n8"\n', "line 2: caption_id: expected printable"),
        ("a.csv", "image,caption_0,caption_1\n1.jpg,a,b\n2.jpg,,\n", "line 3: the caption of 2.jpg is empty"),
        ("a.csv", "image,caption_0,caption_1\n1.jpg,a\n", "line 2: 2 fields; the header has 3"),
        ("a.csv", 'image,caption_0,caption_1\n1.jpg,"[""a""]",b\n', "line 2: caption: a list in one of several"),
        ("a.csv", "image,caption,caption_1\n1.jpg,a,b\n", "line 1: .*caption_1, caption could all be"),
        ("a.csv", "image,caption_1,text_1\n1.jpg,a,b\n", "line 1: .* could all be captions"),
        ("a.csv", "image,caption,caption\n1.jpg,a,b\n", "line 1: .*caption, caption could all be the caption"),
        ("a.csv", "file;text;path\n1.jpg;a;b\n", "line 1: .*file, path could all be the image"),
        ("a.csv", "picture|words\n1.jpg|a\n", r"line 1: .*image; the columns are picture, words, divided at '\|'"),
        ("a.csv", BAR + "1.jpg| b\n", r"line 3: 2 fields; the header has 3, divided at '\|'"),
        ("a.csv", BAR + "1.jpg\n", "line 3: 1 fields"),
        ("a.txt", "1.jpg#0\ta\n1.jpg#1 b\n", "line 2: expected image#n<TAB>caption"),
        ("a.txt", "1.jpg#0\ta\n1.jpg#0\tb\n", "line 2: '1.jpg#0' is on line 1 too"),
        ("a.txt", "1.jpg#0\ta\n1.jpg#1\t\n", "line 2: the caption of 1.jpg is empty"),
        ("a.tsv", 'image\tcaption\n1.jpg\t"a, b"\n', "line 2: the caption is quoted"),
        ("a.csv", "image,caption\n1.jpg,a\n2.jpg,\xfc\n".encode("latin1"), "line 3: not UTF-8 text"),
        ("a.csv", "image,caption\n1.jpg,a\n".encode("utf-16-le"), "line 1: a NUL byte"),
        ("a.csv", b"\xff\xfe" + "image,caption\n1.jpg,a\n".encode("utf-16-le")[:-1], "UTF-16"),
        ("a.csv", 'image,caption\n"1\n.jpg",a\n', "line 2: expected a file in the images folder"),
        ("a.csv", "image,caption\nhttp://a/1.jpg,a\n", "line 2: expected a file in the images folder"),
        ("a.csv", "image,caption\n\u200b.jpg,a\n", "line 2: id .*expected printable characters"),
        ("a.csv", f"image,caption\n../{'x' * 100_000},a\n", "line 2: expected a file in the images folder"),
        ("a.csv", "image,caption,split\n1.jpg,a,\n", "line 2: split '' is not one of"),
        ("a.jsonl", '{"image": "1.jpg", "caption": ["a", null]}', "line 1: caption 2 of the list: expected text"),
        ("a.jsonl", '{"image": "1.jpg", "caption": NaN}', "line 1: caption: expected text"),
        ("a.jsonl", '{"image": {"a": 1}, "caption": "a"}', "line 1: image: expected text, found an object"),
        ("a.jsonl", '{"image": "1.jpg", "caption": "\\ud800"}', "line 1: .*no text"),
        ("a.jsonl", '{"image": "1.jpg", "caption": "a\\u0000"}', "line 1: a NUL"),
        ("a.jsonl", "[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", '{"image": "1.jpg", "caption": ' + "9" * 5000 + "}", "line 1: not JSON"),
    ],
)
def test_what_only_looks_like_a_form_is_one_line_that_names_the_row(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / name, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 1.5, -1])
def test_sizes_of_drawn_splits_that_are_none_are_refused(tmp_path, size):
    (tmp_path / "a.csv").write_text("image,caption\n1.jpg,a\n2.jpg,a\n3.jpg,a\n")
    with pytest.raises(UsageError, match="--test"):
        read_caption_table(tmp_path / "a.csv", 0, size, seed=1)
