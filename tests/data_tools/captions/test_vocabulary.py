import json
import os
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.captions.splits import load_split
from data_tools.captions.tokenization import tokenize
from data_tools.captions.vocabulary import MASK_TOKEN, SPECIAL, UNK, Vocabulary, count_words
from data_tools.errors import InputError


def test_words_need_four_occurrences():
    captions = ["a cat sat .", "A cat ran .", "a cat", "a dog . cat"]
    vocabulary = Vocabulary.build(captions)
    assert vocabulary.words == [*SPECIAL, "a", "cat"]
    assert vocabulary.index("cat") == 5
    assert vocabulary.index("dog") == UNK


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.text(min_size=1).filter(lambda w: w not in SPECIAL), unique=True))
def test_scans_json_is_written_and_read(tmp_path_factory, words):
    path = tmp_path_factory.mktemp("vocab") / "vocab.json"
    vocabulary = Vocabulary([*SPECIAL, *words])
    vocabulary.save(path)
    assert Vocabulary.load(path) == vocabulary
    document = json.loads(path.read_text())
    assert document["idx"] == len(words) + 4
    assert all(document["idx2word"][str(i)] == w for w, i in document["word2idx"].items())


def test_mask_is_appended_once():
    vocabulary = Vocabulary([*SPECIAL, "cat"])
    assert vocabulary.with_mask().words == [*SPECIAL, "cat", MASK_TOKEN]
    assert vocabulary.with_mask().with_mask() == vocabulary.with_mask()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected SCAN's vocabulary"),
        ({"word2idx": {"<pad>": 0, "<start>": 2}}, "from 0 without gaps"),
        ({"word2idx": {"<pad>": 0, "<start>": "1"}}, "from 0 without gaps"),
        ({"word2idx": {"a": 0, "b": 1, "c": 2, "d": 3}}, "a vocabulary begins with <pad>"),
    ],
)
def test_a_malformed_vocabulary_is_refused(tmp_path, document, message):
    (tmp_path / "vocab.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match=message):
        Vocabulary.load(tmp_path / "vocab.json")


def test_published_vocabularies_load(scan_vocabularies):
    for name, size in (("coco", 11353), ("f30k", 8481)):
        assert len(Vocabulary.load(scan_vocabularies / f"{name}_precomp_vocab.json")) == size


def test_real_captions_give_the_recorded_number_of_words(flickr8k):
    splits = [load_split(flickr8k / "precomp", name) for name in ("train", "dev")]
    assert len(Vocabulary.build(caption for split in splits for caption in split.captions)) == 1026


def test_tokens_are_those_of_nltk_sentence_by_sentence():
    assert tokenize("Dr. Smith's dog can't run. It sleeps.") == [
        "dr.", "smith", "'s", "dog", "ca", "n't", "run", ".", "it", "sleeps", ".",
    ]  # fmt: skip
    assert tokenize("") == []


def test_published_files_have_the_shape_that_is_written(scan_vocabularies, tmp_path):
    for name in ("coco", "f30k"):
        published = (scan_vocabularies / f"{name}_precomp_vocab.json").read_text()
        Vocabulary.load(scan_vocabularies / f"{name}_precomp_vocab.json").save(tmp_path / "vocab.json")
        written = (tmp_path / "vocab.json").read_text()
        assert list(json.loads(written)) == list(json.loads(published))
        assert json.loads(written) == json.loads(published)
        assert len(written) == len(published)  # the same JSON but for the order of the words


def test_coverage_counts_words_as_often_as_they_occur():
    vocabulary = Vocabulary([*SPECIAL, "a", "cat"])
    assert vocabulary.coverage(count_words(["a cat sat", "A cat"])) == pytest.approx(4 / 5)
    assert vocabulary.coverage(count_words([])) == 0


# SCAN's own file, as Python 2 wrote it: an object of vocab.Vocabulary in protocol 2
PICKLED = (
    b"\x80\x02cvocab\nVocabulary\n)\x81}(U\x08word2idx}(U\x05<pad>K\x00U\x07<start>K\x01U\x05<end>K\x02"
    b"U\x05<unk>K\x03U\x03dogK\x04uU\x08idx2word}(K\x04U\x03doguU\x03idxK\x05ub."
)


@pytest.mark.parametrize("module", [b"vocab", b"build_vocab"])
def test_scans_old_pickle_is_read(tmp_path, module):
    (tmp_path / "v.pkl").write_bytes(PICKLED.replace(b"cvocab", b"c" + module))
    assert Vocabulary.load(tmp_path / "v.pkl").words == [*SPECIAL, "dog"]


def test_another_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'mark'}",)

    for content in (pickle.dumps(Evil(), 2), PICKLED[:-20], b"\x80\x02K\x01.", pickle.dumps({"word2idx": 3}, 2)):
        (tmp_path / "v.pkl").write_bytes(content)
        with pytest.raises(InputError, match=r"v\.pkl") as raised:
            Vocabulary.load(tmp_path / "v.pkl")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "mark").exists()
