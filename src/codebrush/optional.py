"""Asks for optional packages in one place: a missing one is one line that says how to install it."""

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from codebrush.errors import CodebrushError

# what is imported -> what messages call it, and the extra of pyproject.toml that installs it
PACKAGES = {
    "torchmetrics": ("torchmetrics", "eval"),
    "sklearn": ("scikit-learn", "eval"),
    "transformers": ("transformers", "text"),
    "lancedb": ("LanceDB", "search"),
    "av": ("PyAV", "video"),
    "pillow_heif": ("pillow-heif", "photos"),
    "rawpy": ("rawpy", "photos"),
    "fastapi": ("FastAPI", "serve"),
    "gradio": ("Gradio", "studio"),
    "uvicorn": ("uvicorn", "serve"),
    "sqlalchemy": ("SQLAlchemy", "serve"),
    "prometheus_client": ("prometheus-client", "serve"),
    "multipart": ("python-multipart", "serve"),
    "starlette": ("Starlette", "serve"),
    "diffusers": ("diffusers", "diffusers"),
    "ray": ("Ray", "cluster"),
    "lance": ("pylance", "cluster"),
}
if sys.platform == "linux":  # elsewhere its OpenMP and PyTorch's do not get on, and searches are on disk
    PACKAGES["faiss"] = ("faiss-cpu", "search")

# an extra of pyproject.toml -> what there is with it, in the words of `codebrush doctor`
GIVES = {
    "search": "index, search and duplicates: databases of pictures",
    "serve": "serve: the HTTP API with its queue of jobs",
    "studio": "make serve: Studio, the page to paint on in a browser",
    "eval": "probe and evaluate: metrics as others define them",
    "text": "text encoders of Hugging Face inside a CLIP",
    "video": "videos as mp4; gif and webp need nothing",
    "photos": "HEIC photographs of phones and camera RAW files",
    "diffusers": "flows of packs in diffusers' pipelines, and a CLIP as a guide of theirs",
    "cluster": "index, curate and embed with --engine ray, for collections larger than one machine",
}


def installed_version(package: str) -> str | None:
    """The version of `package`, one of `PACKAGES`, without importing it; None if it is missing, "?" if it has none."""
    try:
        if find_spec(package) is None:
            return None
    except (ImportError, ValueError):  # it was taken out of sys.modules, or is half gone
        return None
    for name in (PACKAGES[package][0], package):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "?"


def require(package: str, what: str, otherwise: str = "", error: type[CodebrushError] = CodebrushError) -> None:
    """Raise an `error` unless `package`, one of `PACKAGES`, can be imported.

    Its line is "WHAT PACKAGE: pip install ...", such as "SSIM needs torchmetrics: pip install ...", and ends in
    `otherwise`.
    """
    try:
        importlib.import_module(package)
    except ImportError as cause:
        name, extra = PACKAGES[package]
        raise error(f'{what} {name}: pip install "codebrush[{extra}]"{otherwise}') from cause
