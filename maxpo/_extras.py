"""What is said where a package of an extra is missing."""


class MissingExtraError(ImportError):
    """A package that the core does not need, but what was asked for does, cannot be imported."""


def missing_extra(who: str, package: str, extra: str, error: ImportError) -> MissingExtraError:
    """The error for an import that failed.

    Args:
      who: What needs the package.
      package: Its name on PyPI.
      extra: The extra that holds it.
      error: Why it failed. It is passed on where the package is there and something in it is not.

    >>> print(missing_extra("load_pretrained", "safetensors", "lm", ModuleNotFoundError()))
    load_pretrained needs the package safetensors: pip install 'maxpo[lm]'
    """
    absent = isinstance(error, ModuleNotFoundError) and (
        (error.name or package).partition(".")[0].replace("_", "-") == package
    )
    why = "" if absent or not str(error) else f" (its import failed: {error})"
    hint = f"pip install 'maxpo[{extra}]'"
    return MissingExtraError(f"{who} needs the package {package}: {hint}{why}")
