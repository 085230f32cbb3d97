"""What the server answers: the same as the index, to whom it may, and to many at once."""

import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
testclient = pytest.importorskip("starlette.testclient", reason="the extra serve is not installed")

from chan.retrieval.server import guard  # noqa: E402
from chan.retrieval.server.app import MAX_QUERY, make_app  # noqa: E402


@pytest.fixture
def client(searched):
    return testclient.TestClient(make_app(searched), base_url="http://127.0.0.1:8000")


def test_a_sentence_gives_what_the_index_gives(client, searched):
    document = client.get("/api/search", params={"q": "a red circle", "k": 5}).json()
    expected = searched.search("a red circle", 5)
    assert [hit["id"] for hit in document["hits"]] == [hit.image_id for hit in expected.hits]
    assert [hit["score"] for hit in document["hits"]] == pytest.approx([h.score for h in expected.hits], abs=1e-5)
    assert [word["text"] for word in document["words"]] == ["<start>", "a", "red", "circle", "<end>"]
    assert [word["content"] for word in document["words"]] == [False, False, True, True, False]
    assert (document["images"], document["exact"]) == (23, True)
    for hit, found in zip(document["hits"], expected.hits, strict=True):
        assert (hit["width"], hit["height"]) == (120, 80)
        assert [match["region"] for match in hit["words"]] == [match.region for match in found.words]
        for match in hit["words"]:
            assert hit["regions"][match["region"]] == match["box"]


def test_weights_change_the_ranking_as_in_python(client, searched):
    document = client.get("/api/search", params={"q": "red circle", "weights": "0,3,0,1", "k": 23}).json()
    query = searched.query("red circle").weighted([0, 3, 0, 1])
    assert [hit["id"] for hit in document["hits"]] == [hit.image_id for hit in searched.search(query, 23).hits]
    assert [word["weight"] for word in document["words"]] == [0, 3, 0, 1]


def test_a_region_gives_images_with_such_a_region(client, searched):
    document = client.get("/api/like", params={"id": "4", "region": 1, "k": 3}).json()
    expected = searched.like("4", 1, 3)
    assert [(hit["id"], hit["region"]) for hit in document["hits"]] == [
        (hit.image_id, hit.region) for hit in expected.hits
    ]


def test_a_thumbnail_is_the_picture(client):
    answer = client.get("/thumbnail", params={"id": "4"})
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (120, 80)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/search", 400),
        ("/api/search?q=%20", 400),
        (f"/api/search?q={'a' * (MAX_QUERY + 1)}", 400),
        ("/api/search?q=red&k=0", 400),
        ("/api/search?q=red&k=1000000", 400),
        ("/api/search?q=red&k=-1", 400),
        ("/api/search?q=red&k=x", 400),
        ("/api/search?q=red&weights=1,1", 400),
        ("/api/search?q=red&weights=1,99,1", 400),
        ("/api/like?id=nobody&region=0", 400),
        ("/api/like?id=4&region=50", 400),
        ("/thumbnail?id=nobody", 404),
        ("/thumbnail?id=../../../etc/passwd", 404),
        ("/static/../app.py", 404),
        ("/static/%2e%2e/app.py", 404),
        ("/nothing", 404),
    ],
)
def test_wrong_use_is_one_line_of_json(client, path, status):
    answer = client.get(path)
    assert answer.status_code == status
    assert "\n" not in answer.json()["error"]


def test_every_answer_has_the_security_headers(client):
    for path in ("/", "/static/page.js", "/api/search?q=red", "/thumbnail?id=4", "/nothing"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"


def test_a_name_that_points_here_from_elsewhere_is_refused(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    assert client.get("/", headers={"host": "localhost:8000"}).status_code == 200


def test_a_server_for_others_asks_for_its_token(searched):
    client = testclient.TestClient(make_app(searched, "secret"), base_url="http://photos.example")
    for path in ("/", "/api/search?q=red", "/thumbnail?id=4", "/static/page.js", "/?token=wrong", "/?token="):
        assert client.get(path).status_code == 401
    assert client.get("/?token=secret").status_code == 200  # after a redirection that leaves the token in a cookie
    assert client.get("/api/search?q=red").status_code == 200


def test_a_client_that_asks_too_often_is_told_so(searched, monkeypatch):
    monkeypatch.setattr(guard, "BURST", 5.0)
    monkeypatch.setattr(guard, "RATE", 0.001)
    client = testclient.TestClient(make_app(searched), base_url="http://127.0.0.1:8000")
    assert [client.get("/").status_code for _ in range(8)] == [200] * 5 + [429] * 3


def test_five_hundred_requests_of_twenty_clients_are_answered(address, searched):
    expected = [hit.image_id for hit in searched.search("a blue square", 24).hits]

    def ask(_):
        with httpx.Client(base_url=address, timeout=60) as client:
            answers = []
            for number in range(25):
                path = ("/api/search?q=a+blue+square", f"/thumbnail?id={number % 23}", "/api/like?id=3&region=0")
                answer = client.get(path[number % 3])
                answers.append((answer.status_code, number, answer))
            return answers

    with ThreadPoolExecutor(20) as clients:
        answers = [answer for of_client in clients.map(ask, range(20)) for answer in of_client]
    assert len(answers) == 500
    assert {status for status, _, _ in answers} == {200}
    for _, number, answer in answers:
        if number % 3 == 0:
            assert [hit["id"] for hit in answer.json()["hits"]] == expected
