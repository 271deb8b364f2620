"""A params file held against what the notebooks take: mistakes are found before the first notebook starts."""

import ast
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

TYPES = {"str": str, "bool": bool, "int": int, "float": (int, float), "list": list, "dict": dict}

WORDS = {
    "composed_scale": "population raw",
    "controls": "prompt_only shuffled random instructed steering_only temperature_only fixed",
    "device": "cpu mps auto cuda cuda:N",
    "dtype": "float32 float64 bfloat16 float16 4bit 8bit",
    "estimator": "paper exposure_adjusted",
    "more_positions": "all prompt generation first_k:K",
    "judge": "scorer scorer:NAME local:NAME reward:NAME endpoint:NAME",
    "personal_vectors": "dislike_weighted coordinates",
    "pool": "answer_mean last",
    "positions": "all prompt generation first_k:K",
    "prompt_labels": "given measured",
    "second_judge": "scorer scorer:NAME local:NAME reward:NAME endpoint:NAME",
    "style": "continuation chat",
    "styles": "continuation chat",
    "workers": "auto",
}
"""What a parameter, or each entry of its list, may be; in place of a capital stands what `HOLES` says."""
HOLES = {"NAME": ".+", "K": r"[1-9]\d*", "N": r"\d+"}
REGISTERED = {"methods": "RULES", "score_function": "SCORE_FUNCTIONS"}  # words that stand in steerlib.rules

ANY = {"alphas", "caa_alphas", "composed_alphas", "direction_alphas", "layer_shifts", "vector_alpha"}
ABOVE_0 = {"basis_rank", "max_new_tokens", "max_pairs", "max_perplexity_ratio", "min_ratings", "n_questions"}
ABOVE_0 |= {"explorer_alpha_max", "explorer_tokens", "path_tokens", "prompts_per_category"}
ABOVE_0 |= {"repetition_penalty"}
RANGES = (  # all other numbers are at least 0
    ("between 0 and 1", lambda x: 0 < x < 1, {"dev_share", "train_share"}),
    ("above 0 and at most 1", lambda x: 0 < x <= 1, {"top_p"}),
    ("from 0 to 1", lambda x: 0 <= x <= 1, {"explorer_min_p"}),
    ("above 0", lambda x: x > 0, ABOVE_0),
    ("a number", lambda x: True, ANY),  # noqa: ARG005
)
LARGEST = 2**31 - 1
# Beside lists whose default is empty.
MAY_BE_EMPTY = {"composed_alphas", "controls", "methods", "personal_vectors"}

NO_PATHS = {"run", "revision", *REGISTERED, *WORDS} - {"judge", "second_judge"}
# No paths; a folder of that name is `./demo`.
RESERVED = {"", "demo", "demo_large", "embedded", "none", "prism", "scorer", "cais/mmlu"}
RESERVED |= {"calibrated", "detoxify", "perspective"}
MODELS = {"model", "scorer", "judge", "second_judge", "aligner", "anti_model", "expert_model"}
KINDS = {"local", "reward", "scorer", "endpoint", "replay", "detoxify"}  # stand before a colon
FILES = {"pairs_file", "questions", "ratings"}  # never the name of a model
WITHIN_DATA = {"pair_file", "prompt_file", "text_files"}  # files of data_folder, absent where the hub is read
PATH = re.compile(r"[~.]{0,2}/.*|.*/.*/.*|.*\.(csv|tsv|jsonl?|gz|parquet|safetensors|gguf|txt)")
SECRET = re.compile(r"(?<!\w)(hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,})")


class BadInput(ValueError):
    """A mistake in what the user gave; its message is one line and needs no traceback."""


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell, `name: annotation = default`."""

    annotation: str
    default: Any

    def takes(self, value: object) -> bool:
        """Whether the value is of the annotated type; a whole number serves as a float, True is no number."""
        return _fits(value, ast.parse(self.annotation, mode="eval").body)


def _fits(value: object, annotation: ast.expr) -> bool:
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Name(id=name) if name in TYPES:
            return isinstance(value, TYPES[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_fits(entry, item) for entry in value)
    raise BadInput(f"a parameter cannot be annotated {ast.unparse(annotation)!r}")


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """Parameters that a notebook takes, by name: lines `name: type = literal` of its one cell tagged `parameters`."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise BadInput(f"{notebook.name} has {len(tagged)} cells tagged 'parameters', not 1")
    parameters = {}
    for line in ast.parse("".join(tagged[0]["source"])).body:
        try:
            name, annotation = ast.unparse(line.target), ast.unparse(line.annotation)
            parameters[name] = Parameter(annotation, ast.literal_eval(line.value))
        except (AttributeError, ValueError):
            written = f"{notebook.name}: {ast.unparse(line)!r}"
            raise BadInput(f"{written} in the parameters is not `name: type = literal`") from None
        if not parameters[name].takes(parameters[name].default):
            raise BadInput(f"{notebook.name}: {ast.unparse(line)!r}: the default is not {annotation}")
    return parameters


def flat(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The keys of a params file: each parameter, but for a dict with entries each of those."""
    found = {}
    for name, parameter in parameters.items():
        entries = parameter.default if isinstance(parameter.default, dict) else {}
        inside = {key: Parameter(_type(value), value) for key, value in entries.items()}
        found |= inside or {name: parameter}
    return found


def _type(default: object) -> str:
    if isinstance(default, list) and default:
        return f"list[{_type(default[0])}]"
    return "str | float | None" if default is None else type(default).__name__


def handed(params: Mapping[str, Any], parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """What one notebook is handed of a params file; a dict of which some entries are given keeps its others."""
    found = {name: params[name] for name in parameters if name in params}
    for name in parameters.keys() - found:
        entries = flat({name: parameters[name]})
        if params.keys() & entries:
            found[name] = {key: params.get(key, entry.default) for key, entry in entries.items()}
    return found


class _StrictLoader(yaml.SafeLoader):
    """YAML as usual, but a key given twice is refused, and 010, 1:30 or 1_000, which it reads as 8, 90 and 1000."""

    def construct_plain(self, node: yaml.ScalarNode) -> int | float:
        if re.search(r"^[-+]?0[\dbxo]|[:_]", node.value):
            said = f"{node.value} is no plain decimal number"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
        whole = node.tag.endswith("int")
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


for kind in ("int", "float"):
    _StrictLoader.add_constructor(f"tag:yaml.org,2002:{kind}", _StrictLoader.construct_plain)


def read_params(path: Path) -> dict[str, Any]:
    """Keys and values of a flat params file in UTF-8; an empty file is a run with all defaults."""
    try:
        params = yaml.load(path.read_text(encoding="utf-8-sig"), _StrictLoader)
        json.dumps(params, default=str, ensure_ascii=False).encode()  # no circle, no half of a character
    except OSError:
        raise BadInput(f"params file {path.absolute()} cannot be read") from None
    except UnicodeError as failure:
        raise BadInput(f"{path} is not text in UTF-8, save it as such: {failure}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as failure:
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(failure).split())}") from None
    if params is None:
        return {}
    if not isinstance(params, dict) or not all(isinstance(key, str) for key in params):
        raise BadInput(f"{path} must hold lines `key: value` with keys that are words, not {params!r}")
    return params


def override(text: str) -> tuple[str, list]:
    """A key and the values that a grid gives it, from `key=value,value` in YAML's flow style: `alphas=[1],[2]`."""
    key, equals, values = text.partition("=")
    try:
        found = yaml.load(f"[{values}]", _StrictLoader)
    except (yaml.YAMLError, ValueError) as failure:
        raise BadInput(f"--set {text}: {' '.join(str(failure).split())}") from None
    if not (key and equals and found):
        raise BadInput(f"--set {text!r} is not key=value,value")
    return key.strip(), found


def check_params(params: Mapping[str, Any], known: Mapping[str, Parameter]) -> None:
    """Refuse a secret, a key that no notebook takes, a wrong type, a number out of range and a misspelt word.

    `known` are those of all notebooks, as `flat` gives them: a key is of the same type in each. BadInput names every
    offending key, what was expected and what was given.
    """
    secrets = [key for key, value in _leaves(params) if _is_secret(key, value, [*known])]
    if secrets:
        raise BadInput(
            f"{', '.join(secrets)}: params end up in executed notebooks, so a secret must not be among them;"
            " put it in the environment (HF_TOKEN for the hub)"
        )
    problems = [problem for name, value in params.items() for problem in _problems(name, value, known)]
    if problems:
        raise BadInput("; ".join(dict.fromkeys(problems)))


def _leaves(value: Mapping | list, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values at any depth, each with the key nearest to it."""
    for name, entry in value.items() if isinstance(value, Mapping) else ((key, entry) for entry in value):
        nested = isinstance(entry, Mapping | list)
        yield from _leaves(entry, str(name)) if nested else [(str(name), entry)]


def _is_secret(key: str, value: object, known: Sequence[str]) -> bool:
    """By its value; or by its key, unless that is almost a parameter's, as max_new_token is."""
    words = re.split(r"[^a-z]+", key.lower())
    named = words[-1] in {"token", "key", "apikey"} or {"secret", "password", "passwd"} & set(words)
    typo = get_close_matches(key, known, n=1, cutoff=0.85)
    return bool(named and not typo) or (isinstance(value, str) and SECRET.search(value) is not None)


def _nearest(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"


def _problems(name: str, value: Any, known: Mapping[str, Parameter]) -> Iterator[str]:
    if name not in known:
        yield f"unknown parameter {name!r}; {_nearest(name, [*known])}"
        return
    default = known[name].default
    if not known[name].takes(value):
        yield f"{name} must be {known[name].annotation}, as in {default!r}, not {value!r}"
        if re.search(r"'[-+]?\d+e[-+]?\d+'", repr(value)):
            yield "YAML reads 1e-4 as text, write 1.0e-4"
        return
    if isinstance(value, list) and any(value.count(entry) > 1 for entry in value):
        yield f"{name} has a value twice: {value!r}"
    if value in ([], "") and default and name not in MAY_BE_EMPTY:
        yield f"{name} must not be empty"
    if name == "contexts" and not _are_contexts(value):
        yield f"{name} must be {{category: {{expert: text, anti: text, instructed: text}}}}, not {value!r}"
    for _, entry in _leaves({name: value}):
        if isinstance(entry, float) and not math.isfinite(entry):
            yield f"{name} must be finite, not {entry!r}"
        elif isinstance(entry, int | float) and not isinstance(value, dict):
            found = [(text, fits) for text, fits, names in RANGES if name in names]
            text, fits = found[0] if found else ("at least 0", lambda x: x >= 0)
            if not (fits(entry) and abs(entry) <= LARGEST):
                yield f"{name} must be {text}" + (f" and at most {LARGEST}" * fits(entry)) + f", not {entry}"
        elif name in WORDS and entry and not any(_is_word(entry, word) for word in WORDS[name].split()):
            yield f"{name}: {entry!r} is unknown; {_nearest(entry, WORDS[name].split())}"
        elif name in REGISTERED and entry not in (default if isinstance(default, list) else [default]):
            registry = getattr(import_module("steerlib.rules"), REGISTERED[name])  # torch comes with it
            if entry not in registry:
                yield f"{name}: {entry!r} is unknown; {_nearest(entry, [*registry])}"


def _is_word(entry: str, word: str) -> bool:
    return re.fullmatch(re.sub("[A-Z]+", lambda hole: HOLES[hole[0]], word), entry) is not None


def _are_contexts(value: Mapping[Any, Any]) -> bool:
    branches = {"expert", "anti", "instructed"}
    if not all(isinstance(texts, dict) and texts.keys() <= branches for texts in value.values()):
        return False
    written = [text for texts in value.values() for text in texts.values()]
    return all(isinstance(text, str) for text in [*value, *written]) and all(map(str.strip, written))


def resolved(params: Mapping[str, Any], folders: Sequence[Path]) -> tuple[dict, dict[str, list[Path]]]:
    """Params with every file and folder that they name as an absolute path, and those paths by parameter.

    Relative paths are looked for in the folders in order, then in the data folder; BadInput where one is in none.
    """
    changed, inputs = dict(params), {}
    for name in sorted(params.keys() - NO_PATHS, key=lambda name: (name != "data_folder", name)):
        entries = params[name] if isinstance(params[name], list) else [params[name]]
        found = [_located(name, entry, folders) for entry in entries]
        if paths := [path for _, path in found if path]:
            changed[name] = [text for text, _ in found] if isinstance(params[name], list) else found[0][0]
            inputs[name] = paths
        if name == "data_folder":
            folders = [*folders, *paths]
    return changed, inputs


def _kind(entry: str) -> tuple[str, str]:
    """What stands before and after the colon of a judge or scorer; of any other text "" and itself."""
    kind, _, rest = entry.partition(":")
    return (kind, rest) if kind in KINDS else ("", entry)


def _located(name: str, entry: Any, folders: Sequence[Path]) -> tuple[Any, Path | None]:
    """A value, with the file or folder that it names as an absolute path where it names one; and that path."""
    if not isinstance(entry, str) or not entry.isprintable() or entry in RESERVED:
        return entry, None
    kind, text = _kind(entry)
    places = [(folder / Path(text).expanduser()).absolute() for folder in folders]
    for place in places if text else []:
        if place.exists():
            return (f"{kind}:{place}" if kind else str(place)), place
    written = (PATH.fullmatch(text) or name in FILES) and kind != "endpoint" and name not in WITHIN_DATA
    if name == "data_folder" or written:
        looked = " and ".join(dict.fromkeys(map(str, places)))
        raise BadInput(f"{name}: {entry!r} is not there; looked for {looked}")
    return entry, None


def check_hub(params: Mapping[str, Any], inputs: Mapping[str, Sequence[Path]]) -> None:
    """Refuse, with its parameter's name, a model that is no path and neither in the hub's cache nor on the hub."""
    for name in [name for name in MODELS & params.keys() - inputs.keys() if params[name]]:
        kind, model = _kind(str(params[name]))
        if model in RESERVED or kind == "endpoint":
            continue
        hub = import_module("huggingface_hub")
        try:
            cached = hub.try_to_load_from_cache(model, "config.json")
            if not isinstance(cached, str):
                hub.model_info(model, timeout=5)
        except Exception as failure:  # of the client's HTTP library, which differs between versions
            said = " ".join(str(failure).split())[:200]
            absent = f"{name}: {model!r} is neither a folder here nor in the hub's cache"
            raise BadInput(f"{absent} nor to be had from the hub: {said}") from None
