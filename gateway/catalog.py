"""The models that exist, by canonical name and alias. Permissions and routing only ever see canonical names."""

from collections.abc import Callable, Iterable, Mapping

from gateway.errors import UnknownModel
from gateway.settings import ModelSettings


class Catalog:
    """Names of models; `<Catalog 2 models, 1 aliases>`."""

    def __init__(self, canonical: Mapping[str, str]) -> None:
        self._canonical = canonical

    @classmethod
    def of(cls, models: Iterable[ModelSettings]) -> "Catalog":
        return cls({name: model.name for model in models for name in (model.name, *model.aliases)})

    def resolve(self, name: str, may_call: Callable[[str], bool]) -> str:
        """The canonical name behind `name`. Raises UnknownModel, also for a model that the caller may not call."""
        canonical = self._canonical.get(name)
        if canonical is None or not may_call(canonical):
            raise UnknownModel(name)
        return canonical

    def names(self) -> Iterable[tuple[str, str]]:
        """Every (name, canonical name) that a caller may use."""
        return self._canonical.items()

    def __repr__(self) -> str:
        models = set(self._canonical.values())
        return f"<Catalog {len(models)} models, {len(self._canonical) - len(models)} aliases>"
