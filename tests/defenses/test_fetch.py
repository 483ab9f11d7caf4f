"""Downloads: held to their digest where it is known, named where it is not, fetched again where the cache is wrong."""

import hashlib
import io
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robench.core.cache import cache_folder
from robench.core.errors import ResourceError, UsageError
from robench.core.trust import trusting
from robench.corruption.cache import Cache
from robench.data._base import default_root
from robench.defenses import _fetch, load
from robench.defenses._checkpoints import fetch, split_location
from robench.defenses.vit import vit

URL = "https://host/file.safetensors"
HUB = "hf://owner/name/folder/file.safetensors"


class Answer(io.BytesIO):
    def __init__(self, content, length, url=URL):
        super().__init__(content)
        self.headers = {} if length is None else {"Content-Length": str(length)}
        self.url = url

    def geturl(self):
        return self.url


class Server:
    """Gives one content, perhaps not all of it, and counts how often it is asked."""

    def __init__(self, content):
        self.content, self.asked, self.keep, self.url, self.error = content, 0, None, URL, None
        self.length = len(content)

    def urlopen(self, request, timeout):
        self.asked += 1
        if self.error:
            raise self.error
        return Answer(self.content[: self.keep], self.length, self.url)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    save_file(
        vit(image_size=8, patch_size=4, width=8, depth=1, heads=2, num_classes=10).classifier.state_dict(),
        tmp_path / "file",
    )
    server = Server((tmp_path / "file").read_bytes())
    monkeypatch.setattr(_fetch.urllib.request, "urlopen", server.urlopen)
    return server


@pytest.fixture
def digest(server):
    return hashlib.sha256(server.content).hexdigest()


def cached(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".sha256"]


def test_a_download_is_kept_and_its_unknown_digest_is_said(tmp_path, server, digest):
    one, two = fetch(URL, Path()), fetch(URL, Path())
    assert one == two and server.asked == 1
    assert one.path.read_bytes() == server.content and cached(tmp_path) == [one.path]
    assert len(one.notes) == 1 and f"'#sha256={digest}'" in one.notes[0]
    assert fetch(f"{URL}#sha256={digest}", Path()).notes == ()
    assert fetch(URL, Path(), digest).notes == ()


@pytest.mark.parametrize("known", ["", "fragment", "card"])
@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: data[:-1] + b"?", lambda data: b""])
def test_a_file_cached_wrong_is_fetched_again(server, digest, known, damage):
    location = f"{URL}#sha256={digest}" if known == "fragment" else URL
    sha256 = digest if known == "card" else ""
    path = fetch(location, Path(), sha256).path
    path.write_bytes(damage(path.read_bytes()))
    assert fetch(location, Path(), sha256).path.read_bytes() == server.content
    assert server.asked == 2


def test_a_download_that_is_cut_off_leaves_nothing(tmp_path, server):
    server.keep = -5
    with pytest.raises(ResourceError, match=r"cannot be downloaded \(cut off after \d+ of \d+ bytes\)"):
        fetch(URL, Path())
    assert cached(tmp_path) == []


def test_another_file_than_was_asked_for(server):
    with pytest.raises(ResourceError, match=r"expected [0-9a-f]+: get the file again"):
        fetch(f"{URL}#sha256={'0' * 64}", Path())
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        fetch(f"{URL}#sha256=abc", Path())


def test_a_download_never_leaves_https(tmp_path, server):
    server.url = "http://host/file.safetensors"
    with pytest.raises(ResourceError, match="is not https"):
        fetch(URL, Path())
    assert cached(tmp_path) == []


def test_without_the_network_a_file_of_an_older_release_is_used(server):
    path = fetch(URL, Path()).path
    path.with_name(f"{path.name}.sha256").unlink()
    server.error = urllib.error.URLError("no route to host")
    assert fetch(URL, Path()).path == path
    path.unlink()
    with pytest.raises(ResourceError, match=r"cannot be downloaded \(.*no route to host.*--checkpoint"):
        fetch(URL, Path())


@pytest.mark.parametrize("location", [URL, HUB])
def test_a_cards_checkpoint_is_fetched_once_and_checked(tmp_path, server, digest, monkeypatch, location):
    asked = []

    def hub(repository, file, force_download=False):
        asked.append((repository, file))
        return str(tmp_path / "file")

    monkeypatch.setattr(_fetch, "hf_hub_download", hub)
    builder = "vit(image_size=8, patch_size=4, width=8, depth=1, heads=2, num_classes=10)"
    card = tmp_path / "far.toml"
    text = f"builder = '{builder}'\ndataset = 'digits'\ncheckpoint = '{location}'\nsha256 = '{digest}'\n"
    card.write_text(text)
    with trusting():
        assert load(str(card)).checkpoint_sha256 == load(str(card)).checkpoint_sha256 == digest
    assert asked[:1] == ([("owner/name", "folder/file.safetensors")] if location == HUB else [])
    assert server.asked == (1 if location == URL else 0)
    card.write_text(text.replace("sha256 = '", "sha256 = '0"))
    with trusting(), pytest.raises(ResourceError, match="has sha256"):
        load(str(card))


def test_a_name_with_a_hash_sign_is_a_name(tmp_path):
    (tmp_path / "a#b.pt").write_bytes(b"x")
    assert split_location("a#b.pt", tmp_path) == ("a#b.pt", "", "")
    assert split_location("a#ema", tmp_path) == ("a", "ema", "")
    assert split_location(f"{URL}#ema&sha256={'A' * 64}") == (URL, "ema", "a" * 64)


@pytest.mark.parametrize("name", ["a" * 5000, f"{'a' * 5000}#ema", "a/" * 3000, "a\0b"])
def test_a_name_that_no_file_can_have_is_one_line(tmp_path, name):
    place, _, _ = split_location(name, tmp_path)
    with pytest.raises(ResourceError, match="is missing") as error:
        _fetch._local(place, tmp_path)
    assert len(str(error.value)) < 300


def test_every_kind_of_file_has_a_folder_of_its_own_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBENCH_CACHE", str(tmp_path))
    assert Cache().folder == tmp_path / "corruptions" == cache_folder("corruptions")
    monkeypatch.delenv("ROBENCH_CACHE")
    monkeypatch.delenv("ROBENCH_DATA", raising=False)
    assert Cache().folder == default_root() / "corruptions" == Path.home() / ".cache/robench/corruptions"
