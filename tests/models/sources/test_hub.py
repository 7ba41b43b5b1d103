"""The hub's cache, whole and in part, with the hub's client replaced."""

import json
import pathlib
import shutil

import pytest
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

import models
from models.sources import hub
from tests.support.golden import GOLDEN

WHOLE = {"model.safetensors", *hub.USUAL}


class Hub:
    """A repository, of which the cache has some files; what is asked of it is counted."""

    def __init__(self, folder):
        self.folder, self.asked, self.probed = folder, 0, []
        self.files = set(WHOLE)  # that the hub gives
        self.listed, self.reachable, self.failure = False, True, None

    def put(self, *names):
        self.folder.mkdir(exist_ok=True)
        for name in names:
            if name in ("config.json", "model.safetensors"):
                shutil.copy(GOLDEN / "tiny_qwen3" / name, self.folder / name)
            else:
                (self.folder / name).write_text("{}")

    def snapshot_download(self, repo, allow_patterns, local_files_only=False):
        assert repo == "acme/tiny" and "*.safetensors" in allow_patterns
        if not local_files_only:
            self.asked += 1
            if self.failure:
                raise self.failure
            self.put(*self.files)
        elif not self.folder.exists():
            raise hub.errors.LocalEntryNotFoundError("not here")
        return str(self.folder)

    def get_cached_repo_tree(self, repo, revision):
        if not self.listed:
            raise hub.errors.CachedRepoTreeNotFoundError("no list", repo, revision, "cache")
        return [1]

    def create_connection(self, address, timeout):
        self.probed.append(address)
        if not self.reachable:
            raise OSError("Network is unreachable")
        return pathlib.Path("/dev/null").open("rb")


@pytest.fixture
def repository(monkeypatch, tmp_path):
    made = Hub(tmp_path / "0a1b")
    for name in ("snapshot_download", "get_cached_repo_tree"):
        monkeypatch.setattr(hub.huggingface_hub, name, getattr(made, name))
    monkeypatch.setattr(hub.socket, "create_connection", made.create_connection)
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_ENDPOINT", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return made


PARTS = [
    ["config.json", "tokenizer.json", "tokenizer_config.json"],
    ["config.json"],
    ["tokenizer.json"],
    ["model.safetensors"],
    sorted(WHOLE - {"generation_config.json"}),
    [],
]


@pytest.mark.parametrize("part", PARTS)
def test_a_cache_in_part_is_completed(repository, part):
    repository.put(*part)
    assert {p.name for p in hub.fetch("acme/tiny").iterdir()} == WHOLE
    assert repository.asked == 1


def test_an_index_whose_files_are_not_there_is_completed(repository):
    repository.put(*hub.USUAL)
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (repository.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    repository.files |= {"model-00001-of-00001.safetensors"}
    hub.fetch("acme/tiny")
    assert repository.asked == 1


def test_a_whole_cache_is_taken_without_network(repository):
    repository.put(*WHOLE)
    hub.fetch("acme/tiny")
    (repository.folder / "generation_config.json").unlink()
    repository.listed = True  # the client has compared its list: the hub has no such file
    hub.fetch("acme/tiny")
    assert not repository.asked and not repository.probed


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_without_network_what_was_not_fetched_is_named(repository, name):
    repository.reachable = False
    repository.put(*WHOLE)
    assert hub.fetch("acme/tiny") == repository.folder
    (repository.folder / name).unlink()
    shown = "weights in safetensors" if name == "model.safetensors" else name
    with pytest.raises(ConnectionError, match=rf"acme/tiny is only in part \(.*0a1b: {shown} not"):
        hub.fetch("acme/tiny")


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """A snapshot in a cache as the client lays it out, without generation_config.json."""
    cache = tmp_path / "models--acme--tiny"
    folder = cache / "snapshots" / ("0a1b" * 10)
    folder.mkdir(parents=True)
    for name in WHOLE - {"generation_config.json"}:
        (folder / name).write_text("{}")
    shutil.copy(GOLDEN / "tiny_qwen3" / "model.safetensors", folder)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(folder.name)
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache, folder


def test_a_file_that_the_hub_has_not_is_not_missed(cached):
    cache, folder = cached
    with pytest.raises(ConnectionError, match="in part .*: generation_config.json not fetched"):
        hub.fetch("acme/tiny")
    (cache / ".no_exist" / folder.name).mkdir(parents=True)
    (cache / ".no_exist" / folder.name / "generation_config.json").touch()
    assert hub.fetch("acme/tiny") == folder


@pytest.mark.parametrize("has", [False, True])
def test_the_hubs_own_list_is_believed(cached, has):
    cache, folder = cached
    names = {p.name for p in folder.iterdir()} | ({"generation_config.json"} if has else set())
    entries = {name: TreeCacheEntry(size=2, blob_id="0" * 40) for name in names}
    write_tree_cache(str(cache), folder.name, entries)
    if not has:
        assert hub.fetch("acme/tiny") == folder
        return
    with pytest.raises(ConnectionError, match="in part .*: generation_config.json not fetched"):
        hub.fetch("acme/tiny")


def test_what_the_hub_does_not_give_is_named(repository):
    repository.put("config.json")
    repository.files = {"config.json"}
    with pytest.raises(ConnectionError, match="has no weights in safetensors that https://hugg"):
        hub.fetch("acme/tiny")
    repository.failure = Exception("404 Client Error.\n\nRepository Not Found")
    with pytest.raises(ConnectionError, match=r"could not be fetched .* 404 Client Error\. Repos"):
        hub.fetch("acme/tiny")


@pytest.mark.parametrize(
    ("environment", "address"),
    [
        ({}, ("huggingface.co", 443)),
        ({"HF_ENDPOINT": "http://127.0.0.1"}, ("127.0.0.1", 80)),
        ({"HF_ENDPOINT": "http://mirror:8080/x"}, ("mirror", 8080)),
        ({"https_proxy": "http://proxy"}, ("proxy", 80)),
        ({"https_proxy": "proxy:3128"}, ("proxy", 3128)),
        ({"HF_ENDPOINT": "http://127.0.0.1", "https_proxy": "http://proxy"}, ("127.0.0.1", 80)),
        ({"https_proxy": "http://proxy", "no_proxy": "huggingface.co"}, ("huggingface.co", 443)),
    ],
)
def test_the_address_that_is_tried_is_the_clients(repository, monkeypatch, environment, address):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    hub.fetch("acme/tiny")
    assert repository.probed == [address]


@pytest.mark.parametrize("endpoint", ["mirror", "http://", "http://mirror:port", "ftp://mirror"])
def test_an_address_that_is_none_is_named(repository, monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(ConnectionError, match=f"'{endpoint}.*' is no address of the form https"):
        hub.fetch("acme/tiny")


def test_a_fetched_model_is_loaded(repository, tmp_path):
    repository.files -= {"tokenizer.json"}
    assert models.load("acme/tiny", "float32", tmp_path / "cache").tokenizer is None
