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
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.nodes
import jinja2.sandbox
from markupsafe import Markup

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical, documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Policy
from ansible_collections.apiary.tetragon.plugins.plugin_utils.problems import Refused, refuse

MODES = ("monitor", "enforce")
MODE_OPTION = "policy-mode"
MAX_LOOP_STEPS = 20_000
MAX_OUTPUT = 1 << 20
MAX_OPERAND = 10_000


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
        spec["options"] = [*spec.get("options", ()), {"name": MODE_OPTION, "value": mode}]
        return {"apiVersion": "cilium.io/v1alpha1", "kind": self.kind, "metadata": metadata, "spec": spec}

    def text(self, mode: str) -> str:
        return canonical.to_yaml(self.document(mode))


class _Limit(Exception):
    pass


_GROWING_METHODS = frozenset(["format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs"])


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Refuses attribute escapes (Jinja's sandbox), endless loops, and operands that would fill the memory."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _GROWING_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Any:
        return None

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(side) if isinstance(side, (str, list, tuple)) else abs(side) for side in (left, right)]
        if (operator == "%" and isinstance(left, str)) or max(sizes) > MAX_OPERAND:
            raise _Limit(f"operator {operator!r} with operands this large or of this kind is not allowed")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        for concat in template.find_all(jinja2.nodes.Concat):
            concat.nodes = [jinja2.nodes.Filter(node, "_short", [], [], None, None, lineno=concat.lineno) for node in concat.nodes]
        return template


def _write_json(value: Any) -> Any:
    if isinstance(value, (Markup, jinja2.Undefined)):
        return value
    try:
        return Markup(json.dumps(value, sort_keys=True))
    except (TypeError, ValueError):
        raise _Limit(f"an expression yields {type(value).__name__}, which cannot be written as YAML") from None


def _short(value: Any) -> Any:
    if isinstance(value, str) and len(value) > MAX_OPERAND:
        raise _Limit(f"joins a text of more than {MAX_OPERAND} characters")
    return value


def _counted(budget: list[int]) -> Any:
    def count(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            budget[0] -= 1
            if budget[0] < 0:
                raise _Limit(f"loops for more than {MAX_LOOP_STEPS} steps")
            yield item

    return count


@functools.lru_cache(maxsize=512)
def _compiled(policy_digest: str, source: str, macros: tuple[tuple[str, str], ...], file: str) -> tuple[jinja2.Template, list[int]]:
    budget = [0]
    environment = _Sandbox(
        loader=jinja2.DictLoader(dict(macros)),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        finalize=_write_json,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for name in ("safe", "random", "pprint", "urlize", "xmlattr", "center", "format"):
        environment.filters.pop(name, None)
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    environment.filters["_counted"] = _counted(budget)
    environment.filters["_short"] = _short
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise refuse(f"not a valid template: {error.message}", file=file, line=error.lineno) from None
    return template, budget


def _expand(policy: Policy, context: Mapping[str, Any]) -> str:
    file = policy.template_file
    template, budget = _compiled(policy.digest, policy.template, tuple(sorted(policy.macros.items())), file)
    budget[0] = MAX_LOOP_STEPS
    parts, size = [], 0
    try:
        for part in template.generate(**context):
            size += len(part)
            if size > MAX_OUTPUT:
                raise _Limit(f"writes more than {MAX_OUTPUT} characters")
            parts.append(part)
    except jinja2.UndefinedError as error:
        known = ", ".join(sorted(context))
        raise refuse(f"uses a variable that is not defined: {error.message}; defined here: {known}", file=file, line=_line(error)) from None
    except jinja2.exceptions.SecurityError as error:
        raise refuse(f"reaches out of the template sandbox: {error}", file=file, line=_line(error)) from None
    except jinja2.TemplateSyntaxError as error:
        raise refuse(f"not a valid template: {error.message}", file=f"{file} ({error.name})", line=error.lineno) from None
    except jinja2.TemplateNotFound as error:
        raise refuse(f"imports {error.name!r}; known macros: {', '.join(policy.macros) or 'none'}", file=file, line=_line(error)) from None
    except RecursionError:
        raise refuse("a macro calls itself without end", file=file) from None
    except (_Limit, TypeError, ValueError, ArithmeticError, LookupError, jinja2.TemplateError) as error:
        raise refuse(f"cannot be rendered: {error}", file=file, line=_line(error)) from None
    return "".join(parts)


def _line(error: BaseException) -> int:
    """The template's line in the traceback that Jinja rewrote, or 0."""
    line, frame = 0, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "<template>":
            line = frame.tb_lineno
        frame = frame.tb_next
    return line


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
    document = documents.parse(_expand(policy, {**complete, "form": form, "protected": list(protected)}), f"{file} (rendered)")
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
