"""Maps go to a folder and to a hub on loopback, and come back with their card."""

import base64
import http.server
import json
import os
import subprocess
import sys
import threading
import types
from typing import ClassVar

import numpy as np
import pytest

from mv2v_jax import InputError, load_map
from mv2v_jax.portable import PortableMap

pytest.importorskip("huggingface_hub")
from mv2v_jax.portable import hub

FACTS = {"verdict": "aligned", "reason": "restarts_agree_at_every_scale", "confidence": "0.98712", "n": "6000"}


@pytest.fixture
def judged(portable_map):
    parts = {name: getattr(portable_map, name) for name in ("W", "mean_x", "mean_y", "scale_x", "scale_y")}
    return PortableMap(**parts, metadata=FACTS)


def test_a_folder_and_its_card(tmp_path, judged, rows):
    hub.HubMap(judged).save_pretrained(tmp_path)
    assert {"map.safetensors", "README.md"} <= set(os.listdir(tmp_path))
    loaded = hub.HubMap.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.apply(rows, frame="target"), judged.apply(rows, frame="target"))
    np.testing.assert_array_equal(loaded.apply(rows, metric="cosine", dims=4), judged.apply(rows, dims=4))
    assert FACTS.items() <= loaded.map.metadata.items()
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n")
    assert "library_name: mv2v_jax" in card
    for line in ("| verdict | aligned |", "| confidence | 0.987 |", "| n | 6000 |", "of 9 dimensions to rows of 6"):
        assert line in card
    with pytest.raises(InputError, match="found frame"):
        hub.HubMap.from_pretrained(tmp_path, frame="target")


def test_a_map_without_a_verdict_says_so(portable_map):
    assert "The file of this map holds no verdict." in str(hub.HubMap(portable_map).generate_model_card())


def test_the_map_of_a_fit(tmp_path, linear_map):
    hub.HubMap(linear_map, {"verdict": "aligned", "confidence": 0.98712}).save_pretrained(tmp_path)
    assert "| confidence | 0.987 |" in (tmp_path / "README.md").read_text()
    found, metadata = load_map(tmp_path / "map.safetensors")
    np.testing.assert_array_equal(found.W, linear_map.W)
    assert json.loads(metadata["confidence"]) == 0.98712
    with pytest.raises(InputError, match="must be a LinearMap, found SimpleNamespace; pass its map"):
        hub.HubMap(types.SimpleNamespace(map=linear_map))


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as one upload and one download use."""

    files: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *args):
        pass

    def _answer(self, body=b"{}", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            return self._answer(json.dumps({"url": f"{os.environ['HF_ENDPOINT']}/me/map"}).encode())
        if "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(sent)["files"]]
            return self._answer(json.dumps({"files": files}).encode())
        if "/commit/" in self.path:
            for line in map(json.loads, sent.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            found = {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{os.environ['HF_ENDPOINT']}/me/map/commit/0",
            }
            return self._answer(json.dumps(found).encode())
        return self._answer(b'{"errors": [], "warnings": []}')

    def do_GET(self):
        name = self.path.rpartition("/")[2].partition("?")[0]
        if "/resolve/" not in self.path:
            return self._answer(json.dumps({"id": "me/map", "sha": "0" * 40, "siblings": []}).encode())
        if name not in self.files:
            return self._answer(b"", 404, X_Error_Code="EntryNotFound")
        return self._answer(self.files[name], ETag='"1"', X_Repo_Commit="0" * 40)

    do_HEAD = do_GET


PROGRAM = """
import numpy as np
import mv2v_jax
from mv2v_jax.portable.hub import HubMap
linear_map, facts = mv2v_jax.load_map("map.safetensors")
HubMap(linear_map, facts).push_to_hub("me/map", token="hf_made_up")
loaded = HubMap.from_pretrained("me/map", cache_dir="cache")
np.testing.assert_array_equal(loaded.map.W, linear_map.W)
assert loaded.map.metadata["verdict"] == "aligned"
print("the same")
"""


def test_a_hub_on_loopback(tmp_path, monkeypatch, judged):
    judged.save(tmp_path / "map.safetensors")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=100
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert "the same" in done.stdout
    assert b"| verdict | aligned |" in Hub.files["README.md"]
