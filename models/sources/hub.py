"""Models of the Hugging Face hub: a folder of the local cache, or fetched into it."""

import functools
import os
import pathlib
import re
import socket
import urllib.parse
import urllib.request

import huggingface_hub
from huggingface_hub import errors

from models.foreign import safetensors_file

FILES = ("*.json", "*.safetensors", "*.jinja")
# What the repositories of our families have beside the weights; stops and templates are in them.
USUAL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
PORTS = {"http": 80, "https": 443}
PROBE_SECONDS = 3


def fetch(repo: str) -> pathlib.Path:
    """The local folder of `repo` ("owner/name"), whole; downloaded as far as it is not there.

    Raises ConnectionError at once where the hub cannot be reached: the client itself would go on
    trying for half a minute; ConnectionError also for what the hub does not give. A folder of which
    it is not known whether it is whole is none: its stops could be in a file that is not there.
    """
    get = functools.partial(huggingface_hub.snapshot_download, repo, allow_patterns=list(FILES))
    try:
        local = pathlib.Path(get(local_files_only=True))
        # Without the hub's list of files the client takes any folder for whole: of another program,
        # that fetched one file, say.
        missing = [] if _has_list(repo, local) else _missing(repo, local, USUAL)
        if not missing:
            return local
    except errors.IncompleteSnapshotError as error:  # by the hub's list
        local = pathlib.Path(error.snapshot_path)
        missing = re.findall(r"missing \((.*?)\)\.", str(error)) or ["a part"]
    except errors.LocalEntryNotFoundError:
        local, missing = None, []
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if why := _unreachable(endpoint):
        there = "is not"
        if local:
            there = f"is only in part ({local}: {', '.join(missing)} not fetched)"
        raise ConnectionError(
            f"{repo} {there} in the local Hugging Face cache and {why}. Fetch it where there is "
            f"network (`hf download {repo}`) and pass the folder's path, or use one of the demo "
            "models, which come through the package registry."
        )
    try:
        folder = pathlib.Path(get())
    except Exception as error:  # the client has errors of many libraries
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise ConnectionError(f"{repo} could not be fetched from {endpoint}: {words}") from error
    if missing := _missing(repo, folder, ("config.json",)):
        raise ConnectionError(
            f"{repo} has no {', '.join(missing)} that {endpoint} would give; what is there is in "
            f"{folder}."
        )
    return folder


def _has_list(repo: str, folder: pathlib.Path) -> bool:
    """Whether the client knows which files the repository has: it has checked then."""
    try:
        return bool(huggingface_hub.get_cached_repo_tree(repo, revision=folder.name))
    except (errors.CachedRepoTreeNotFoundError, OSError, ValueError):
        return False


def _missing(repo: str, folder: pathlib.Path, names: tuple[str, ...]) -> list[str]:
    """What a folder of the cache lacks, but for files that the hub said it has not."""
    missing = []
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repo, name, revision=folder.name)
        if found is not huggingface_hub._CACHED_NO_EXIST and not (folder / name).exists():
            missing.append(name)
    try:
        safetensors_file.tensor_files(folder)
    except FileNotFoundError:
        missing.append("weights in safetensors")
    except ValueError:  # there, and damaged: loading says how
        pass
    return missing


def _unreachable(endpoint: str) -> str | None:
    """Why the hub cannot be reached; None if it can."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    url = urllib.parse.urlparse(endpoint)
    # Behind a proxy only the proxy can be reached, and that is enough.
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not (url.hostname and urllib.request.proxy_bypass(url.hostname)):
        url = urllib.parse.urlparse(proxy if "://" in proxy else f"http://{proxy}")
    try:
        address = (url.hostname, url.port or PORTS[url.scheme])
    except (ValueError, KeyError):
        address = (None, None)
    if not address[0]:
        return f"{url.geturl()!r} is no address of the form https://host"
    try:
        socket.create_connection(address, PROBE_SECONDS).close()
    except OSError as error:
        return f"{address[0]} cannot be reached at port {address[1]} ({error})"
    return None
