"""YAML as people write it by hand (`--config`, `--prices`, `--rates`), read strictly: a key that stands twice is a fault."""

from typing import Any

import yaml

_KEYS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool"))


class YamlFaultError(ValueError):
    """Where and what is wrong, in one line."""


def read_yaml(text: str | bytes) -> Any:  # noqa: ANN401 - whatever the document holds
    """The one document of a YAML (or JSON) text; None for an empty one.

    Raises:
        YamlFaultError: it is no YAML, no UTF-8, or a mapping has a key twice, be it with `-` or with `_`.
    """
    try:
        return _OnceLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # a tag's may be any of these
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise YamlFaultError(where + (getattr(error, "problem", None) or " ".join(str(error).split()))) from None


class _OnceLoader(yaml.SafeLoader):
    """Safe YAML whose mappings have each key once; YAML says so, PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[Any]()
        for key, _ in node.value:
            name = self.construct_object(key) if key.tag in _KEYS else None
            spelt = name.replace("-", "_") if isinstance(name, str) else name
            if name is not None and spelt in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands there twice", key.start_mark)
            seen.add(spelt)
        return super().construct_mapping(node, deep)
