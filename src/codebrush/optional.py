"""Asks for optional packages in one place: a missing one is one line that says how to install it."""

import importlib

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
}


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
