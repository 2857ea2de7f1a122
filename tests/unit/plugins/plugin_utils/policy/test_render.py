# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""Rendering: deterministic, strict, inside its sandbox, and safe from every value."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import documents
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.inputs import values_schema
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.load import Library
from ansible_collections.apiary.tetragon.plugins.plugin_utils.policy.render import MODES, Rendered, render
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import (
    FORM_IDS,
    FORMS,
    LIBRARY_VALUES,
    META,
    PROTECTED,
    REFERENCES,
    TEMPLATE,
    PolicyTree,
    messages,
    refused,
)

Render = Callable[..., Rendered]


@pytest.fixture
def rendering(tree: PolicyTree) -> Render:
    """Renders ``files/watch``, made of the sample or of another template."""

    def of(
        template: str = TEMPLATE, values: dict[str, Any] | None = None, form: str = "host", namespace: str | None = None, meta: str = META
    ) -> Rendered:
        tree.add(template=template, meta=meta)
        return render(tree.policy(), values or {}, form, PROTECTED, namespace)

    return of


def in_template(expression: str, before: str = "") -> str:
    """The sample template with an expression as the message of its hook; ``before`` stands at the very top."""
    return before + TEMPLATE.replace("      syscall: false\n", f"      syscall: false\n      message: {expression}\n")


TEXT_META = META + "  text:\n    type: string\n    description: A text.\n    default: x\n"


# --- what comes out -------------------------------------------------------------------------------------------------


def test_values_stand_where_the_template_puts_them(rendering: Render) -> None:
    spec = rendering(values={"paths": ["/a", "/b"]}).spec
    assert spec["kprobes"][0]["selectors"][0]["matchArgs"][0]["values"] == ["/a", "/b"]


def test_an_input_that_is_not_given_takes_its_default(rendering: Render) -> None:
    rendered = rendering()
    assert rendered.values == {"paths": ["/etc/watched"]}
    assert rendered.spec["kprobes"][0]["selectors"][0]["matchArgs"][0]["values"] == ["/etc/watched"]


def test_the_document_is_a_tracing_policy_with_its_loaded_name_and_mode(rendering: Render) -> None:
    rendered = rendering()
    assert rendered.document("enforce") == {
        "apiVersion": "cilium.io/v1alpha1",
        "kind": "TracingPolicy",
        "metadata": {"name": f"watch-{rendered.revision}"},
        "spec": {**rendered.spec, "options": [{"name": "policy-mode", "value": "enforce"}]},
    }


def test_the_text_is_the_document_as_yaml(rendering: Render) -> None:
    rendered = rendering()
    assert yaml.safe_load(rendered.text("monitor")) == rendered.document("monitor")


def test_options_of_the_template_stand_before_the_mode(rendering: Render) -> None:
    template = TEMPLATE.replace("  kprobes:\n", '  options:\n    - {name: disable-kprobe-multi, value: "1"}\n  kprobes:\n')
    assert [option["name"] for option in rendering(template).document("monitor")["spec"]["options"]] == [
        "disable-kprobe-multi",
        "policy-mode",
    ]


def test_writing_a_document_leaves_the_rendering_as_it_was(rendering: Render) -> None:
    rendered = rendering()
    document = rendered.document("monitor")
    document["spec"]["kprobes"].clear()
    assert rendered.document("monitor")["spec"]["kprobes"]


def test_a_namespace_makes_the_namespaced_kind(rendering: Render) -> None:
    document = rendering(form="cluster", namespace="shop").document("monitor")
    assert document["kind"] == "TracingPolicyNamespaced"
    assert document["metadata"]["namespace"] == "shop"


def test_the_template_sees_its_form(rendering: Render) -> None:
    assert "podSelector" in rendering(form="cluster").spec
    assert "podSelector" not in rendering(form="host").spec


def test_the_template_sees_the_protected_executables(rendering: Render) -> None:
    assert rendering(in_template("{{ protected | length }}")).spec["kprobes"][0]["message"] == len(PROTECTED)


@pytest.mark.parametrize("name", ["mode", "namespace_", "name", "policy", "environment"])
def test_the_template_does_not_see(name: str, rendering: Render) -> None:
    assert f"{name!r} is undefined" in messages(refused(rendering, in_template(f"{{{{ {name} }}}}")))


def test_a_form_that_the_policy_does_not_have_is_refused(rendering: Render) -> None:
    text = messages(refused(rendering, form="cluster", meta=META.replace("[host, cluster]", "[host]")))
    assert "policy files/watch has no cluster form; it has: host" in text


# --- determinism and revision ---------------------------------------------------------------------------------------


def test_rendering_twice_gives_the_same_text(tree: PolicyTree) -> None:
    tree.add()
    assert len({render(tree.policy(), {"paths": ["/a"]}, "host", PROTECTED).text("monitor") for _unused in range(3)}) == 1


def test_the_order_in_which_values_are_given_does_not_matter(rendering: Render) -> None:
    meta = TEXT_META
    template = in_template("{{ text }}")
    forth = rendering(template, {"paths": ["/a"], "text": "b"}, meta=meta)
    back = rendering(template, {"text": "b", "paths": ["/a"]}, meta=meta)
    assert forth.text("monitor") == back.text("monitor")


def test_the_revision_is_eight_hex_digits_at_the_end_of_the_loaded_name(rendering: Render) -> None:
    rendered = rendering()
    assert rendered.loaded_name == f"watch-{rendered.revision}"
    assert len(rendered.revision) == 8
    assert int(rendered.revision, 16) >= 0


def test_a_value_equal_to_the_default_gives_the_same_revision(rendering: Render) -> None:
    assert rendering(values={"paths": ["/etc/watched"]}).revision == rendering().revision


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"values": {"paths": ["/etc/other"]}}, id="another value"),
        pytest.param({"values": {"paths": ["/etc/watched", "/etc/b"]}}, id="one more value"),
        pytest.param({"form": "cluster"}, id="another form"),
        pytest.param({"form": "cluster", "namespace": "shop"}, id="a namespace"),
        pytest.param({"template": TEMPLATE.replace("syscall: false", "syscall: true")}, id="a flag of the template"),
        pytest.param({"template": TEMPLATE.replace("action: Post", "action: Sigkill")}, id="an action of the template"),
    ],
)
def test_the_revision_changes_with(change: dict[str, Any], rendering: Render) -> None:
    before = rendering()
    assert rendering(**change).revision != before.revision


def test_the_revision_differs_between_two_namespaces(rendering: Render) -> None:
    assert len({rendering(form="cluster", namespace=name).revision for name in (None, "shop", "bank")}) == 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"template": TEMPLATE + "# a comment\n"}, id="a comment in the template"),
        pytest.param({"template": "{# a comment #}\n" + TEMPLATE}, id="a comment of Jinja"),
        pytest.param({"meta": META.replace("owner: tests", "owner: me")}, id="the owner"),
        pytest.param({"meta": TEXT_META}, id="an input that the template does not use"),
    ],
)
def test_the_revision_does_not_change_with(change: dict[str, Any], rendering: Render) -> None:
    before = rendering()
    assert rendering(**change).revision == before.revision


def test_the_revision_does_not_depend_on_the_name(tree: PolicyTree) -> None:
    tree.add("files/watch")
    tree.add("files/renamed")
    revisions = {render(tree.policy(reference), {}, "host", PROTECTED).revision for reference in ("files/watch", "files/renamed")}
    assert len(revisions) == 1


def test_the_two_modes_differ_in_the_mode_alone(rendering: Render) -> None:
    rendered = rendering()
    monitor, enforce = rendered.text("monitor").splitlines(), rendered.text("enforce").splitlines()
    assert [pair for pair in zip(monitor, enforce, strict=True) if pair[0] != pair[1]] == [("      value: monitor", "      value: enforce")]


def test_two_renderings_differ_in_name_and_values_alone(rendering: Render) -> None:
    one, two = rendering(values={"paths": ["/a"]}).text("monitor"), rendering(values={"paths": ["/b"]}).text("monitor")
    differing = [left.strip() for left, right in zip(one.splitlines(), two.splitlines(), strict=True) if left != right]
    assert [line.split("-")[0] for line in differing] == ["name: watch", ""]
    assert differing[1].strip('-" ') == "/a"


@pytest.mark.parametrize("expression", ['{{ [1] | map("string") | string }}', "{{ text.upper | string }}"])
def test_what_has_no_spelling_of_its_own_is_refused(expression: str, rendering: Render) -> None:
    refused(rendering, in_template(expression), meta=TEXT_META)


# --- library policies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("reference", "form"), FORMS, ids=FORM_IDS)
def test_a_library_policy_renders_alike_every_time(reference: str, form: str, library: Library) -> None:
    policy = library.get(reference)
    first, second = (render(policy, LIBRARY_VALUES.get(reference, {}), form, PROTECTED) for _unused in range(2))
    assert first.text("enforce") == second.text("enforce")
    assert first.document("monitor")["metadata"] == {"name": f"{policy.name}-{first.revision}"}


@pytest.mark.parametrize(("reference", "form"), FORMS, ids=FORM_IDS)
def test_a_library_policy_selects_workloads_in_the_cluster_and_nowhere_else(reference: str, form: str, library: Library) -> None:
    rendered = render(library.get(reference), LIBRARY_VALUES.get(reference, {}), form, PROTECTED)
    assert ("podSelector" in rendered.spec) is (form == "cluster")


@pytest.mark.parametrize("reference", REFERENCES)
def test_a_library_policy_writes_the_mode_as_its_only_difference(reference: str, library: Library) -> None:
    rendered = render(library.get(reference), LIBRARY_VALUES.get(reference, {}), "host", PROTECTED)
    texts = [rendered.text(mode).replace(f"value: {mode}\n", "") for mode in MODES]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("reference", [reference for reference, form in FORMS if form == "cluster"])
def test_pod_labels_and_containers_of_a_library_policy_select_in_the_cluster(reference: str, library: Library) -> None:
    values = {**LIBRARY_VALUES.get(reference, {}), "pod_labels": {"app": "cart"}, "containers": ["main"]}
    spec = render(library.get(reference), values, "cluster", PROTECTED, "shop").spec
    assert spec["podSelector"] == {"matchLabels": {"app": "cart"}}
    assert spec["containerSelector"] == {"matchExpressions": [{"key": "name", "operator": "In", "values": ["main"]}]}


# --- values cannot change the document ------------------------------------------------------------------------------

HOSTILE = {
    "quotes": "a\"b'c",
    "a new line and a key": "x\n      syscall: true",
    "a new line and a top key": "x\nkind: Pod",
    "colon": "a: b",
    "comment": "a # b",
    "Jinja": "{{ 7 * 7 }}{% raw %}{# x #}",
    "flow": "{a: b}",
    "flow end": "]}",
    "anchor": "&a *a",
    "tag": "!!python/object:os.system x",
    "block": "|\n  x",
    "document end": "...\n---\nx: y",
    "backslash": "a\\nb\\",
    "markup": "<b>&amp;</b>",
    "not ASCII": "ü\u2028é\ufeff",
    "control characters": "\x01\x1b",
    "a number": "012",
    "null": "null",
    "nothing but a space": " ",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_value_arrives_as_it_is_and_changes_nothing_around_it(value: str, rendering: Render) -> None:
    plain = rendering(in_template("{{ text }}"), {"text": "x"}, meta=TEXT_META)
    rendered = rendering(in_template("{{ text }}"), {"text": value}, meta=TEXT_META)
    loaded = yaml.safe_load(rendered.text("monitor"))
    assert loaded["spec"]["kprobes"][0].pop("message") == value
    expected = plain.document("monitor")
    expected["spec"]["kprobes"][0].pop("message")
    expected["metadata"] = loaded["metadata"]
    assert loaded == expected


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_value_in_a_list_arrives_as_it_is(value: str, rendering: Render) -> None:
    spec = rendering(values={"paths": [value, "/b"]}).spec
    assert spec["kprobes"][0]["selectors"][0]["matchArgs"] == [{"index": 0, "operator": "Equal", "values": [value, "/b"]}]


def test_a_value_may_hold_characters_beyond_the_first_plane(rendering: Render) -> None:
    assert rendering(in_template("{{ text }}"), {"text": "😀"}, meta=TEXT_META).spec["kprobes"][0]["message"] == "😀"


BREAKOUT = "x\n      return: true"


@pytest.mark.parametrize(
    "expression",
    [
        "{{ text }}",
        '{{ text ~ "" }}',
        '{{ "" ~ text }}',
        "{{ text | tojson }}",
        "{{ text | string }}",
        "{{ text | trim }}",
        '{{ text | replace("q", "z") }}',
        '{{ [text] | join(",") }}',
        "{{ echo(text) }}",
        "{{ text if text else text }}",
        "{{ [text][0] }}",
        "{{ text | e }}",
        "{{ text | escape }}",
        "{{ text | forceescape }}",
        "{{ nothing() ~ text }}",
        "{{ nothing() + text }}",
        "{{ [nothing(), text] | join }}",
        '{{ echo("y") | replace("y", text) }}',
    ],
)
def test_a_value_cannot_break_out_of_an_expression(expression: str, rendering: Render) -> None:
    macros = "{% macro echo(it) %}{{ it }}{% endmacro %}{% macro nothing() %}{% endmacro %}"
    rendered = rendering(in_template(expression, macros), {"text": BREAKOUT}, meta=TEXT_META)
    assert "return" not in rendered.spec["kprobes"][0]
    assert rendered.spec["kprobes"][0]["message"] == BREAKOUT


def test_a_value_of_the_wrong_type_is_kept_out_by_the_inputs(tree: PolicyTree) -> None:
    tree.add()
    schema = values_schema(tree.policy().inputs)
    values = documents.Document("e.yml", {"paths": "/etc/a", "other": 1}, {})
    assert len(documents.validate(values, schema)) == 2


# --- templates that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "line", "message"),
    [
        pytest.param(in_template("{{ pahts }}"), 13, "uses a variable that is not defined: 'pahts' is undefined", id="undefined variable"),
        pytest.param(in_template("{{ paths.nope }}"), 13, "has no attribute 'nope'", id="undefined attribute"),
        pytest.param(in_template("{{ paths[7] }}"), 13, "has no element 7", id="undefined element"),
        pytest.param(in_template("{{ paths | nope }}"), 13, "not a valid template: No filter named 'nope'", id="unknown filter"),
        pytest.param(in_template("{{ paths is nope }}"), 13, "not a valid template: No test named 'nope'", id="unknown test"),
        pytest.param(in_template("{{ paths"), 14, "not a valid template", id="open expression"),
        pytest.param(in_template("{% if paths %}"), 18, "not a valid template", id="open block"),
        pytest.param(in_template("{% do paths %}"), 13, "not a valid template: Encountered unknown tag 'do'", id="unknown tag"),
        pytest.param(in_template("{{ 1 / 0 }}"), 13, "cannot be rendered: division by zero", id="division by zero"),
        pytest.param(in_template('{{ "a" | int + "b" }}'), 13, "cannot be rendered", id="types that do not fit"),
        pytest.param(in_template("{{ range }}"), 13, "which cannot be written as YAML", id="a function as a value"),
        pytest.param(in_template("{{ namespace(a=1) }}"), 13, "which cannot be written as YAML", id="an object as a value"),
    ],
)
def test_a_template_that_fails_is_refused_at_its_line(template: str, line: int, message: str, tree: PolicyTree) -> None:
    target = tree.add(template=template)
    (problem,) = refused(render, tree.policy(), {}, "host", PROTECTED)
    assert problem.file == str(target / "policy.yaml.j2")
    assert problem.line == line
    assert message in problem.message


def test_an_undefined_variable_is_told_with_all_that_are_defined(rendering: Render) -> None:
    assert "defined here: form, paths, protected" in messages(refused(rendering, in_template("{{ pahts }}")))


@pytest.mark.parametrize(
    "expression",
    ['{% import "none.j2" as it %}', '{% include "none.j2" %}', '{% extends "none.j2" %}', '{% from "none.j2" import it %}'],
    ids=["import", "include", "extends", "from"],
)
def test_macros_that_do_not_exist_are_refused_with_those_that_do(expression: str, tree: PolicyTree) -> None:
    tree.add(template=in_template(expression))
    tree.add_macros("scope.j2", "")
    text = messages(refused(render, tree.policy(), {}, "host", PROTECTED))
    assert "imports 'none.j2'; known macros: scope.j2" in text


def test_shared_macros_can_be_imported(tree: PolicyTree) -> None:
    tree.add(template=in_template("{{ shared.twice(2) }}", '{% import "shared.j2" as shared %}\n'))
    tree.add_macros("shared.j2", "{% macro twice(it) %}{{ it * 2 }}{% endmacro %}")
    assert render(tree.policy(), {}, "host", PROTECTED).spec["kprobes"][0]["message"] == 4


@pytest.mark.parametrize("use", ['{{ m() ~ "" }}', "{{ m() | upper }}", "{{ m() + m() }}", "{{ [m()] }}", '{{ m().replace("a", "b") }}'])
def test_the_text_of_a_macro_can_be_written_but_not_changed(use: str, rendering: Render) -> None:
    macro = "{% macro m() %}a{{ paths[0] }}{% endmacro %}"
    assert rendering(in_template("{{ m() }}", macro)).spec["kprobes"][0]["message"] == 'a"/etc/watched"'
    refused(rendering, in_template(use, macro))


def test_the_text_of_a_macro_can_be_indented(rendering: Render) -> None:
    macro = "{% macro m() %}message: {{ paths[0] }}\nreturn: true{% endmacro %}"
    template = macro + TEMPLATE.replace("      syscall: false\n", "      syscall: false\n      {{ m() | indent(6) }}\n")
    kprobe = rendering(template).spec["kprobes"][0]
    assert (kprobe["message"], kprobe["return"]) == ("/etc/watched", True)


def test_macros_that_are_not_valid_are_refused_with_their_name_and_line(tree: PolicyTree) -> None:
    tree.add(template=in_template("x", '{% import "shared.j2" as shared %}\n'))
    tree.add_macros("shared.j2", "\n\n{% macro twice(it %}")
    (problem,) = refused(render, tree.policy(), {}, "host", PROTECTED)
    assert problem.file.endswith("(shared.j2)")
    assert problem.line == 3


def test_a_macro_that_fails_is_named_with_its_own_file(tree: PolicyTree) -> None:
    tree.add(template=in_template("{{ shared.fail() }}", '{% import "shared.j2" as shared %}\n'))
    tree.add_macros("shared.j2", "{% macro fail() %}\n\n{{ nowhere }}{% endmacro %}")
    (problem,) = refused(render, tree.policy(), {}, "host", PROTECTED)
    assert ("shared.j2" in problem.file, problem.line) in ((True, 3), (False, 13))


# --- the sandbox ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        '{{ "".__class__ }}',
        '{{ "".__class__.__mro__[1].__subclasses__() }}',
        "{{ paths.__class__ }}",
        '{{ paths["__class__"] }}',
        '{{ paths | attr("__class__") }}',
        '{{ [paths] | map(attribute="__class__") | list }}',
        '{{ "{0.__class__}".format(paths) }}',
        '{{ "{x.__class__}".format_map({"x": paths}) }}',
        '{{ "%s" % paths }}',
        '{{ "%s" | format(paths) }}',
        "{{ range.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ paths.append.__self__ }}",
        "{{ (1).__add__(1) }}",
        '{{ paths.append("/x") }}',
        "{{ paths.clear() }}",
        '{{ {"a": 1}.update({"b": 2}) }}',
        '{{ dict(a=1).pop("a") }}',
        "{{ cycler.__init__.__globals__ }}",
        "{{ joiner.__init__.__globals__ }}",
        "{{ lipsum.__globals__ }}",
        "{{ paths | safe }}",
        "{{ paths | pprint }}",
        "{{ paths | random }}",
        '{{ {"a": "b"} | xmlattr }}',
        '{{ "http://example.org" | urlize }}',
        "{% debug %}",
        '{% include "/etc/passwd" %}',
        '{% include "../meta.yml" %}',
        '{% import "os" as os %}{{ os.system("true") }}',
    ],
)
def test_the_sandbox_lets_nothing_out(expression: str, rendering: Render) -> None:
    refused(rendering, in_template(expression))


def test_a_template_cannot_change_what_the_next_rendering_sees(tree: PolicyTree) -> None:
    tree.add(template=in_template('{{ paths.append("/x") }}'))
    policy = tree.policy()
    refused(render, policy, {}, "host", PROTECTED)
    assert policy.inputs["paths"].default == ["/etc/watched"]


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param('{{ "a" * 100000000 }}', id="a text times a number"),
        pytest.param('{{ 100000000 * "a" }}', id="a number times a text"),
        pytest.param("{{ [1] * 100000000 }}", id="a list times a number"),
        pytest.param("{{ 99999 ** 99999 }}", id="a power"),
        pytest.param("{{ 9 ** 9 ** 9 }}", id="a power of a power"),
        pytest.param('{{ "%100000000d" % 1 }}', id="a width in a format"),
        pytest.param('{{ "a".center(100000000) }}', id="center"),
        pytest.param('{{ "a" | center(100000000) }}', id="center as a filter"),
        pytest.param('{{ "a".ljust(100000000) }}', id="ljust"),
        pytest.param('{{ "a".rjust(100000000) }}', id="rjust"),
        pytest.param('{{ "1".zfill(100000000) }}', id="zfill"),
        pytest.param('{{ "\\t".expandtabs(100000000) }}', id="expandtabs"),
        pytest.param('{{ "{:100000000}".format(1) }}', id="a width in format"),
        pytest.param("{{ range(100000000) | list }}", id="a range"),
        pytest.param(
            '{% set n = namespace(t="a") %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}', id="+ in a loop"
        ),
        pytest.param(
            '{% set n = namespace(t="a") %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}', id="~ in a loop"
        ),
        pytest.param(
            '{% set n = namespace(t="a") %}{% for i in range(40) %}{% set n.t = n.t * 9 %}{% endfor %}{{ n.t }}', id="* in a loop"
        ),
        pytest.param(
            "{% set n = namespace(t=[1]) %}{% for i in range(40) %}{% set n.t = n.t + n.t %}{% endfor %}{{ n.t }}", id="lists in a loop"
        ),
        pytest.param('{% for i in range(15000) %}{{ "a" * 100 }}{% endfor %}', id="more output than a policy has"),
    ],
)
def test_a_template_cannot_fill_the_memory(expression: str, rendering: Render) -> None:
    assert peak_while_refused(rendering, expression) < 16 << 20


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param('{{ "a" * 10000 * 1000 }}', id="a product of a product"),
        pytest.param('{{ [["a" * 10000] * 40] * 50 }}', id="a list of one text many times"),
        pytest.param('{{ "a\nb" | indent(4000000) }}', id="indent"),
        pytest.param("{{ [1] | tojson(4000000) }}", id="tojson with an indent"),
        pytest.param('{{ ["a"] | batch(2000000, "x") | list | length }}{{ nope }}', id="batch"),
        pytest.param('{{ (1).to_bytes(20000000, "big") }}', id="to_bytes"),
        pytest.param('{{ ("a" * 10000) | replace("a", "b" * 1000) }}', id="replace as a filter"),
        pytest.param('{{ ("a" * 10000).replace("a", "b" * 1000) }}', id="replace"),
        pytest.param('{{ (["a"] * 10000) | join("b" * 1000) }}', id="join as a filter"),
        pytest.param('{{ ("b" * 1000).join(["a"] * 10000) }}', id="join"),
    ],
)
def test_a_template_cannot_fill_the_memory_by_a_detour(expression: str, rendering: Render) -> None:
    assert peak_while_refused(rendering, expression) < 16 << 20


def peak_while_refused(rendering: Render, expression: str) -> int:
    """The most memory in use, in bytes, while a template is refused."""
    tracemalloc.start()
    try:
        refused(rendering, in_template(expression))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("{% for i in range(100000) %}{% endfor %}", id="a long loop"),
        pytest.param("{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}", id="nested loops"),
        pytest.param(
            "{% for i in range(90) %}{% for j in range(90) %}{% for k in range(90) %}{% endfor %}{% endfor %}{% endfor %}", id="three"
        ),
        pytest.param(
            "{% macro m() %}{% for i in range(900) %}{% endfor %}{% endmacro %}{% for i in range(90) %}{{ m() }}{% endfor %}", id="macro"
        ),
    ],
)
def test_a_template_cannot_loop_without_end(expression: str, rendering: Render) -> None:
    assert "loops for more than 20000 steps" in messages(refused(rendering, in_template(expression)))


def test_loops_in_shared_macros_count_too(tree: PolicyTree) -> None:
    tree.add(template=in_template("{{ shared.spin() }}", '{% import "shared.j2" as shared %}\n'))
    tree.add_macros("shared.j2", "{% macro spin() %}{% for i in range(99999) %}{% endfor %}{% endmacro %}")
    assert "loops for more than 20000 steps" in messages(refused(render, tree.policy(), {}, "host", PROTECTED))


def test_as_many_steps_as_are_allowed_can_be_taken_in_every_rendering(tree: PolicyTree) -> None:
    tree.add(template=in_template("{% for i in range(20000) %}{% endfor %}x"))
    policy = tree.policy()
    assert [render(policy, {}, "host", PROTECTED).spec["kprobes"][0]["message"] for _unused in range(2)] == ["x", "x"]


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", id="a macro"),
        pytest.param("{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}", id="two macros"),
        pytest.param("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", id="a loop"),
    ],
)
def test_recursion_without_end_is_refused(expression: str, rendering: Render) -> None:
    assert "a macro calls itself without end" in messages(refused(rendering, in_template(expression)))


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(14) }}", id="a macro"),
        pytest.param(
            "{% set n = namespace(t=[]) %}{% for i in range(14) %}{% set n.t = [n.t, n.t] %}{% endfor %}"
            "{% for x in n.t recursive %}{{ loop(x) }}{% endfor %}x",
            id="a recursive loop",
        ),
    ],
)
def test_recursion_that_branches_counts_as_steps(expression: str, rendering: Render) -> None:
    refused(rendering, in_template(expression))


# --- what must come out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        pytest.param("apiVersion: cilium.io/v1alpha1\n", "", "apiVersion", 'is null; needed: "cilium.io/v1alpha1"', id="no apiVersion"),
        pytest.param("cilium.io/v1alpha1", "v1", "apiVersion", 'is "v1"; needed: "cilium.io/v1alpha1"', id="another apiVersion"),
        pytest.param("kind: TracingPolicy\n", "", "kind", 'is null; needed: "TracingPolicy"', id="no kind"),
        pytest.param("kind: TracingPolicy\n", "kind: Pod\n", "kind", 'is "Pod"; needed: "TracingPolicy"', id="another kind"),
        pytest.param(
            "kind: TracingPolicy\n",
            "kind: TracingPolicyNamespaced\n",
            "kind",
            'needed: "TracingPolicy"',
            id="the namespaced kind written out",
        ),
        pytest.param("metadata:\n  name: watch\n", "", "metadata", 'is null; needed: {"name": "watch"}', id="no metadata"),
        pytest.param(
            "  name: watch\n", "  name: other\n", "metadata", 'is {"name": "other"}; needed: {"name": "watch"}', id="another name"
        ),
        pytest.param("  name: watch\n", "  name: watch\n  labels: {a: b}\n", "metadata", 'needed: {"name": "watch"}', id="labels"),
        pytest.param("  name: watch\n", "  name: watch\n  namespace: x\n", "metadata", 'needed: {"name": "watch"}', id="a namespace"),
        pytest.param(
            "spec:\n", "status: {}\nspec:\n", "status", "unknown key; allowed here: apiVersion, kind, metadata, spec", id="a status"
        ),
        pytest.param(
            "  kprobes:\n",
            "  options: [{name: policy-mode, value: enforce}]\n  kprobes:\n",
            "spec.options",
            "policy-mode belongs to the environment file",
            id="the mode",
        ),
    ],
)
def test_output_that_is_no_tracing_policy_is_refused(old: str, new: str, path: str, message: str, rendering: Render) -> None:
    assert TEMPLATE.count(old) == 1
    (problem,) = refused(rendering, TEMPLATE.replace(old, new))
    assert problem.file.endswith("policy.yaml.j2 (rendered)")
    assert problem.path == path
    assert message in problem.message


@pytest.mark.parametrize("spec", ["spec: {}\n", "spec: null\n", "spec: [a]\n", ""], ids=["empty", "null", "a list", "none"])
def test_a_policy_without_a_spec_is_refused(spec: str, rendering: Render) -> None:
    assert "is missing or empty; needed: the policy's hooks" in messages(refused(rendering, TEMPLATE.partition("spec:\n")[0] + spec))


@pytest.mark.parametrize(
    "template", ["", "- a\n", "text\n", "{% if false %}x{% endif %}"], ids=["nothing", "a list", "text", "all left out"]
)
def test_output_that_is_no_mapping_is_refused(template: str, rendering: Render) -> None:
    assert "renders no mapping; needed: a TracingPolicy" in messages(refused(rendering, template))


def test_output_that_is_no_yaml_is_refused_at_its_line(rendering: Render) -> None:
    (problem,) = refused(rendering, TEMPLATE + "  oops\n")
    assert problem.file.endswith("policy.yaml.j2 (rendered)")
    assert problem.message.startswith("not valid YAML")


def test_a_key_that_stands_twice_in_the_output_is_refused(rendering: Render) -> None:
    (problem,) = refused(rendering, TEMPLATE + "kind: TracingPolicy\n")
    assert problem.message == "written twice, first on line 2: keep one"


@pytest.mark.parametrize("options", ["7", "true"])
def test_options_that_are_no_list_are_refused(options: str, rendering: Render) -> None:
    refused(rendering, TEMPLATE.replace("  kprobes:\n", f"  options: {options}\n  kprobes:\n"))
