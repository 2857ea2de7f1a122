# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Policy templates to TracingPolicies: sandboxed, strict, deterministic.

Every ``{{ expression }}`` is written as JSON, which is valid YAML, so that no value can change the document around it.
Templates see their inputs, ``form`` and ``protected``; they cannot see mode, namespace or name, so two renderings of one policy
differ in nothing else.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.nativetypes
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical, documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse

MODES = ("monitor", "enforce")
MODE_OPTION = "policy-mode"
# Per rendering: steps of loops, and calls of macros; characters written; characters or entries of one result and of all together.
MAX_STEPS = 20_000
MAX_OUTPUT = 1 << 20
MAX_SIZE = 100_000
MAX_WORK = 1 << 25
MAX_NUMBER = 1 << 64
MAX_BASE, MAX_EXPONENT = 10_000, 64


@dataclass(frozen=True)
class Rendered:
    """A policy with one set of values in one form; mode is chosen when it is written."""

    policy: Policy
    form: str
    namespace: str | None
    values: Mapping[str, Any]
    spec: Mapping[str, Any]

    @property
    def kind(self) -> str:
        return "TracingPolicyNamespaced" if self.namespace else "TracingPolicy"

    @cached_property
    def revision(self) -> str:
        """First 8 hex digits of the digest of all that the agent would load, but for name and mode."""
        return canonical.digest({"kind": self.kind, "namespace": self.namespace, "spec": self.spec})[:8]

    @property
    def loaded_name(self) -> str:
        return f"{self.policy.name}-{self.revision}"

    def document(self, mode: str) -> dict[str, Any]:
        """The TracingPolicy with its loaded name and its mode as an option."""
        metadata = {"name": self.loaded_name, **({"namespace": self.namespace} if self.namespace else {})}
        spec = copy.deepcopy(dict(self.spec))
        spec["options"] = [*(spec.get("options") or ()), {"name": MODE_OPTION, "value": mode}]
        return {"apiVersion": "cilium.io/v1alpha1", "kind": self.kind, "metadata": metadata, "spec": spec}

    def text(self, mode: str) -> str:
        return canonical.to_yaml(self.document(mode))


class _Limit(Exception):
    pass


class _Fragment(str):
    """Text of a template with values in it, such as the output of a macro: written as it is, or not at all.

    It is YAML already, so that anything done to it could change the document. An empty one is an empty text.
    """


class _Spelled:
    """A value on its way out of an expression, and its JSON."""

    __slots__ = ("text", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.text = _spell(value)


class _Budget:
    """What one rendering may still do."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.steps = self.calls = MAX_STEPS
        self.work = MAX_WORK

    def call(self) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise _Limit(f"calls macros more than {MAX_STEPS} times")

    def make(self, size: int) -> None:
        """Pay for a text or list of this many characters or entries, before it is made where that can be."""
        self.work -= size
        if size > MAX_SIZE or self.work < 0:
            raise _Limit(f"makes a text or list of more than {MAX_SIZE} characters or entries, or too many of them")

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.steps -= 1
            if self.steps < 0:
                raise _Limit(f"loops for more than {MAX_STEPS} steps")
            yield item


def _spell(value: Any) -> str:
    """A value as JSON, which is YAML on one line. The size is looked at first: lists can hold one text many times."""
    left, rest = MAX_OUTPUT, [value]
    while rest:
        item = rest.pop()
        if isinstance(item, (str, jinja2.Undefined)):
            left -= len(_text(item))
        elif isinstance(item, dict):
            rest += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            rest += item
        elif not isinstance(item, (int, float, type(None))):
            raise _Limit(f"an expression yields {type(item).__name__}, which cannot be written as YAML")
        left -= 1
        if left < 0:
            raise _Limit(f"writes more than {MAX_OUTPUT} characters")
    try:
        return canonical.to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise _Limit(f"an expression yields {type(value).__name__}, which cannot be written as YAML: {error}") from None


def _written(value: Any) -> _Fragment | _Spelled:
    return value if isinstance(value, _Fragment) else _Spelled(value)


def _data(value: Any) -> Any:
    """A value that expressions may work with."""
    if isinstance(value, _Fragment) and value:
        raise _Limit("changes or joins the output of a macro, which can only be written where it stands")
    if callable(value) and not isinstance(value, jinja2.Undefined):
        raise _Limit(f"uses a {type(value).__name__} as a value")
    return value


def _text(value: Any) -> str:
    """A value as text. Lists and objects have none of their own: Python's would show addresses."""
    value = _data(value)
    if isinstance(value, (str, int, float, type(None), jinja2.Undefined)):
        return str(value)
    raise _Limit(f"uses {type(value).__name__} as a text; join a list with the filter join")


def _tojson(value: Any) -> _Fragment:
    return _Fragment(_spell(value))


_LETTERS = ("capitalize", "lower", "title", "trim", "upper")
_OTHERS = (
    "abs count d default dictsort first float int items last length list map max min reject rejectattr reverse round select "
    "selectattr sort unique"
).split()
# Methods whose result is never larger than what they are called on.
_METHODS = frozenset(
    (
        "capitalize casefold count endswith find get index isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric "
        "isprintable isspace istitle isupper items keys lower lstrip partition removeprefix removesuffix rfind rindex rpartition "
        "rsplit rstrip split splitlines startswith strip swapcase title upper values"
    ).split()
)


class _Code(jinja2.nativetypes.NativeCodeGenerator):
    """Hands values out of expressions as they are, so that what joins them knows them from the template's own text."""

    def _output_child_to_const(self, node: jinja2.nodes.Expr, frame: Any, finalize: Any) -> Any:
        if isinstance(node, jinja2.nodes.TemplateData):
            return super()._output_child_to_const(node, frame, finalize)
        raise jinja2.nodes.Impossible


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Refuses attribute escapes (Jinja's sandbox), endless loops, and whatever would fill the memory.

    Only filters and methods are left whose results are bounded and the same everywhere.
    """

    code_generator_class = _Code
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, macros: Mapping[str, str]) -> None:
        super().__init__(
            loader=jinja2.FunctionLoader(lambda name: (macros[name], _MACRO_FILE + name, None) if name in macros else None),
            undefined=jinja2.StrictUndefined,
            finalize=_written,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        self.budget = _Budget()
        self.filters = {
            **{name: self._bounded(self.filters[name], _text) for name in _LETTERS},
            **{name: self._bounded(self.filters[name]) for name in _OTHERS},
            **dict.fromkeys(("e", "escape", "forceescape", "string", "_text"), self._short),
            "join": self._join,
            "replace": self._replace,
            "indent": self._indent,
            "tojson": _tojson,
            "_counted": self.budget.counted,
        }
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]

    def concat(self, parts: Iterable[Any]) -> Any:
        """What a block of the template yields: the value that it consists of, or text around values."""
        parts = list(parts)
        if len(parts) == 1 and isinstance(parts[0], _Spelled):
            return parts[0].value
        texts = [_spelling(part) for part in parts]
        self.budget.make(sum(map(len, texts)))
        return _Fragment("".join(texts))

    def _bounded(self, function: Callable[..., Any], convert: Callable[[Any], Any] = lambda value: value) -> Callable[..., Any]:
        """A filter of Jinja's that takes data and yields data, paid for."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*arguments: Any, **options: Any) -> Any:
            for one in (*arguments[first:], *options.values()):
                _data(one)
            result = function(*arguments[:first], convert(arguments[first]), *arguments[first + 1 :], **options)
            if isinstance(result, Iterator):
                result = list(itertools.islice(result, MAX_SIZE + 1))
            if isinstance(result, (str, list)):
                self.budget.make(len(result))
            return result

        return bounded

    def _short(self, value: Any) -> str:
        text = _text(value)
        self.budget.make(len(text))
        return text

    def _join(self, items: Iterable[Any], d: str = "") -> str:
        texts = [_text(item) for item in items]
        self.budget.make(sum(map(len, texts)) + len(_text(d)) * len(texts))
        return _text(d).join(texts)

    def _replace(self, value: Any, old: Any, new: Any, count: int = -1) -> str:
        text, old, new = _text(value), _text(old), _text(new)
        self.budget.make(len(text) + text.count(old) * max(0, len(new) - len(old)))
        return text.replace(old, new, count)

    def _indent(self, value: Any, width: int = 4, first: bool = False) -> str:
        text = value if isinstance(value, _Fragment) else _text(value)
        self.budget.make(len(text) + (text.count("\n") + 1) * width)
        head, *rest = text.split("\n")
        lines = [" " * width + head if first else head, *(line and " " * width + line for line in rest)]
        return type(text)("\n".join(lines))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, bytes, int, float, dict, list, tuple, range)):
            return attr in _METHODS and not isinstance(obj, _Fragment)
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Jinja lets a format through that it has wrapped; here none is."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        filters = ", ".join(sorted(name for name in self.filters if name[0] != "_"))
        hint = f"{attribute!r} of a {type(obj).__name__} is not for templates; filters that are: {filters}"
        return self.undefined(hint, name=attribute, obj=obj, exc=jinja2.exceptions.SecurityError)

    def call(__self, __context: Any, __obj: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(__obj, (jinja2.runtime.Macro, jinja2.runtime.LoopContext, jinja2.runtime.BlockReference)):
            __self.budget.call()
        if isinstance(__obj, jinja2.runtime.LoopContext):
            arguments = tuple(__self.budget.counted(one) for one in arguments)
        return super().call(__context, __obj, *arguments, **options)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        left, right = _data(left), _data(right)
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            most = (MAX_BASE, MAX_EXPONENT) if operator == "**" else (MAX_NUMBER, MAX_NUMBER)
            if abs(left) > most[0] or abs(right) > most[1]:
                raise _Limit(f"operator {operator!r} with numbers this large is not allowed")
        elif operator == "%":
            raise _Limit("operator '%' is for numbers; join texts with ~")
        elif operator == "*":
            counts = [len(side) if isinstance(side, (str, list, tuple)) else side for side in (left, right)]
            if all(isinstance(one, int) for one in counts):
                self.budget.make(max(0, counts[0] * counts[1]))
        elif isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            self.budget.make(len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        for concat in template.find_all(jinja2.nodes.Concat):
            concat.nodes = [jinja2.nodes.Filter(node, "_text", [], [], None, None, lineno=concat.lineno) for node in concat.nodes]
        return template


def _spelling(part: Any) -> str:
    return part.text if isinstance(part, _Spelled) else str(part)


@functools.lru_cache(maxsize=512)
def _compiled(policy_digest: str, source: str, macros: tuple[tuple[str, str], ...], file: str) -> tuple[jinja2.Template, _Budget]:
    environment = _Sandbox(dict(macros))
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise refuse(f"not a valid template: {error.message}", file=file, line=error.lineno) from None
    return template, environment.budget


def expand(policy: Policy, source: str, context: Mapping[str, Any], file: str) -> str:
    """What a template of this policy writes, in the sandbox. ``file`` is named by errors. Raises Refused."""
    template, budget = _compiled(policy.digest, source, tuple(sorted(policy.macros.items())), file)
    budget.renew()
    parts, size = [], 0
    try:
        for part in template.generate(**context):
            text = _spelling(part)
            size += len(text)
            if size > MAX_OUTPUT:
                raise _Limit(f"writes more than {MAX_OUTPUT} characters")
            parts.append(text)
    except jinja2.UndefinedError as error:
        known = ", ".join(sorted(context))
        raise refuse(f"uses a variable that is not defined: {error.message}; defined here: {known}", **_place(error, file)) from None
    except jinja2.exceptions.SecurityError as error:
        raise refuse(f"reaches out of the template sandbox: {error}", **_place(error, file)) from None
    except jinja2.TemplateSyntaxError as error:
        raise refuse(f"not a valid template: {error.message}", file=f"{file} ({error.name})", line=error.lineno) from None
    except jinja2.TemplateNotFound as error:
        raise refuse(f"imports {error.name!r}; known macros: {', '.join(policy.macros) or 'none'}", **_place(error, file)) from None
    except RecursionError:
        raise refuse("a macro calls itself without end", file=file) from None
    except (_Limit, TypeError, ValueError, ArithmeticError, LookupError, jinja2.TemplateError) as error:
        raise refuse(f"cannot be rendered: {error}", **_place(error, file)) from None
    return "".join(parts)


_MACRO_FILE = "<macros>/"


def _place(error: BaseException, file: str) -> dict[str, Any]:
    """File and line of the innermost template in the traceback that Jinja rewrote; line 0 when there is none."""
    place, frame = {"file": file, "line": 0}, error.__traceback__
    while frame is not None:
        name = frame.tb_frame.f_code.co_filename
        if name == "<template>":
            place = {"file": file, "line": frame.tb_lineno}
        elif name.startswith(_MACRO_FILE):
            place = {"file": f"{file} ({name.removeprefix(_MACRO_FILE)})", "line": frame.tb_lineno}
        frame = frame.tb_next
    return place


def render(policy: Policy, values: Mapping[str, Any], form: str, protected: Sequence[str], namespace: str | None = None) -> Rendered:
    """Render one policy. ``values`` must already fit the policy's inputs (``inputs.values_schema``); templates see
    them, ``form``, and ``protected``: the executables that nothing may kill.

    Raises Refused when the form is not the policy's, the template fails, or what it yields is not a TracingPolicy.
    """
    file = policy.template_file
    if form not in policy.meta["forms"]:
        raise refuse(f"policy {policy.reference} has no {form} form; it has: {', '.join(policy.meta['forms'])}", file=file)
    defaults = {name: spec.default for name, spec in policy.inputs.items() if not spec.required}
    complete = {**defaults, **values}
    document = documents.parse(
        expand(policy, policy.template, {**complete, "form": form, "protected": list(protected)}, file), f"{file} (rendered)"
    )
    data = document.data
    problems = []
    if not isinstance(data, dict):
        raise Refused([document.problem((), "renders no mapping; needed: a TracingPolicy")])
    for key, wanted in (("apiVersion", "cilium.io/v1alpha1"), ("kind", "TracingPolicy"), ("metadata", {"name": policy.name})):
        if data.get(key) != wanted:
            seen = documents.show_value(data.get(key))
            problems.append(document.problem((key,), f"is {seen}; needed: {documents.show_value(wanted)}"))
    spec = data.get("spec")
    if not isinstance(spec, dict) or not spec:
        problems.append(document.problem(("spec",), "is missing or empty; needed: the policy's hooks"))
    elif not isinstance(spec.get("options"), (list, type(None))):
        problems.append(document.problem(("spec", "options"), f"is {documents.show_value(spec['options'])}; needed: a list"))
    elif any(isinstance(option, dict) and option.get("name") == MODE_OPTION for option in spec.get("options") or ()):
        problems.append(
            document.problem(("spec", "options"), f"{MODE_OPTION} belongs to the environment file: take it out of the template")
        )
    extra = sorted(set(data) - {"apiVersion", "kind", "metadata", "spec"})
    if extra:
        problems.append(document.problem((extra[0],), "unknown key; allowed here: apiVersion, kind, metadata, spec"))
    if problems or not isinstance(spec, dict):
        raise Refused(problems)
    return Rendered(policy, form, namespace, complete, spec)
