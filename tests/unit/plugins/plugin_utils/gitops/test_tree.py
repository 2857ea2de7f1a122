# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The tree for a git repository: what is written, what a promotion changes, and what is never touched.

Helm and kustomize themselves are in tests/kube; here a few objects stand for the chart's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ansible_collections.apiary.tetragon.plugins.plugin_utils import canonical
from ansible_collections.apiary.tetragon.plugins.plugin_utils import environment as environments
from ansible_collections.apiary.tetragon.plugins.plugin_utils.bundle import FORMAT, Bundle
from ansible_collections.apiary.tetragon.plugins.plugin_utils.environment import Environment
from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops import argocd, layout, tree
from ansible_collections.apiary.tetragon.plugins.plugin_utils.gitops.layout import Cluster
from ansible_collections.apiary.tetragon.tests.unit.plugins.plugin_utils.samples import messages, refused


def environment(*rings: str) -> Environment:
    """An environment with these rings, each as a YAML mapping."""
    text = 'name: production\nagent_version: "1.7.0"\npolicies: [{policy: network/c2, mode: monitor}]\nrings:\n'
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "environment.yml")
        file.write_text(text + "".join(f"  - {ring}\n" for ring in rings), "utf-8")
        return environments.load(file)


CANARY, EARLY, FLEET = "{name: canary, take: 1%}", "{name: early, take: 10%, batch: 7}", "{name: fleet, take: rest, batch: 10%}"
RINGS = environment(CANARY, EARLY, FLEET)
BY_CLUSTER = environment("{name: canary, groups: [testing]}", "{name: fleet, groups: [live]}")
ONE = Cluster("us-1", ("apiary_clusters",))
TESTING = Cluster("test.example", ("testing",))
LIVE = Cluster("live-1", ("live", "databases"))
SETTINGS = argocd.Settings("https://git.example.com/fleet.git", path="apiary")


def bundle(text: str = "a", where: Sequence[str] = (), names: Sequence[str] = ("c2", "c2-ranges")) -> Bundle:
    """A bundle of policies of the cluster form; ``text`` makes it another one."""
    policies = [
        {
            "name": name,
            "reference": f"network/{name}",
            "loaded": f"{name}-{text}",
            "mode": "monitor",
            "form": "cluster",
            "severity": "high",
            "owner": "security",
            "unpinned": [],
            "file": f"cluster-{name}-{text}.yaml",
        }
        for name in names
    ]
    manifest = {
        "format": FORMAT,
        "environment": "production",
        "agent_version": "1.7.0",
        "policies": policies,
        "assignments": [
            {"policy": one["reference"], "form": "cluster", "where": list(where), "choices": [{"where": [], "loaded": one["loaded"]}]}
            for one in policies
        ],
    }
    return Bundle(manifest, {str(one["file"]): f"name: {one['loaded']}\n" for one in policies})


def configmap(kind: str, data: Mapping[str, str]) -> dict[str, Any]:
    name = f"apiary-{kind}-{canonical.digest(data)[:10]}"
    metadata = {
        "name": name,
        "namespace": "tetragon",
        "labels": {"apiary.dev/kind": kind},
        "annotations": {"helm.sh/resource-policy": "keep"},
    }
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": dict(data)}


def chart(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a chart makes of such values: configuration and policies by digest, shared by rings where they are equal."""
    objects: dict[str, dict[str, Any]] = {}
    names = [ring["name"] for ring in values["rings"]]
    for ring in values["rings"]:
        config = configmap("config", {"log-format": "json"})
        policies = configmap("policies", {"policies.tsv": "table\n", **ring["policies"]})
        objects |= {one["metadata"]["name"]: one for one in (config, policies)}
        rule = {"key": "apiary.dev/ring", "operator": "In", "values": [ring["name"]]}
        if ring["name"] == names[-1]:
            rule = {"key": "apiary.dev/ring", "operator": "NotIn", "values": names[:-1]}
        volumes = [
            {"name": kind["metadata"]["labels"]["apiary.dev/kind"], "configMap": {"name": kind["metadata"]["name"]}}
            for kind in (config, policies)
        ]
        objects[ring["name"]] = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {
                "name": f"apiary-{ring['name']}",
                "namespace": "tetragon",
                "labels": {"app.kubernetes.io/component": "agent", "apiary.dev/ring": ring["name"]},
            },
            "spec": {"template": {"spec": {"affinity": {"rule": rule}, "volumes": volumes}}},
        }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "apiary", "namespace": "tetragon"}}
    return [account, *objects.values()]


def wanted(root: Path, made: Bundle, clusters: Sequence[Cluster] = (ONE,), rings: Environment = RINGS) -> tree.Wanted:
    rendered = {}
    for cluster in clusters:
        own = layout.rings_of(cluster, rings)
        rendered[cluster] = layout.render(cluster, own, made, chart(layout.values(cluster, own, made)))
    owners = layout.code_owners(made, "apiary", {"security": "@example/security"}, ["@example/sre"])
    return tree.Wanted(
        layout.directory_of(made, rendered), rendered, layout.argocd_files(SETTINGS, rings.rings), (root.parent / tree.CODEOWNERS, owners)
    )


def propose(root: Path, made: Bundle, clusters: Sequence[Cluster] = (ONE,), rings: Environment = RINGS) -> tree.Plan:
    plan = tree.propose(root, rings, wanted(root, made, clusters, rings))
    tree.apply(plan)
    return plan


def promote(root: Path, ring: str, clusters: Sequence[Cluster] = (ONE,), rings: Environment = RINGS) -> tree.Plan:
    plan = tree.promote(root, clusters, rings, ring)
    tree.apply(plan)
    return plan


def content(directory: Path) -> dict[str, str]:
    return {path.relative_to(directory).as_posix(): path.read_text("utf-8") for path in directory.rglob("*") if path.is_file()}


def load(root: Path, place: str) -> Any:
    return yaml.safe_load((root / place).read_text("utf-8"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository" / "apiary"


def test_at_first_every_ring_takes_the_bundle(root: Path) -> None:
    plan = propose(root, bundle())
    (name,) = {path.name for path in (root / "clusters/us-1/bundles").iterdir()}
    assert plan.rings == {"us-1": dict.fromkeys(("canary", "early", "fleet"), name)}
    assert name.startswith(f"{bundle().name}-")


def test_a_second_run_changes_nothing(root: Path) -> None:
    propose(root, bundle())
    before = content(root.parent)
    assert propose(root, bundle()).changes == ()
    assert content(root.parent) == before


def test_the_tree_is_the_same_on_another_machine(root: Path, tmp_path: Path) -> None:
    propose(root, bundle(), (TESTING, LIVE), BY_CLUSTER)
    propose(tmp_path / "other" / "apiary", bundle(), (LIVE, TESTING), BY_CLUSTER)
    assert content(root.parent) == content(tmp_path / "other")


def test_a_new_bundle_goes_to_the_first_ring_only(root: Path) -> None:
    former = propose(root, bundle()).rings["us-1"]["canary"]
    before = content(root)
    plan = propose(root, bundle("b"))
    taken = plan.rings["us-1"]
    assert taken["canary"] != former and taken["early"] == taken["fleet"] == former
    after = content(root)
    assert {place for place in before if before[place] != after[place]} == {"clusters/us-1/rings/canary/kustomization.yaml"}


def test_a_promotion_is_one_line_of_one_file(root: Path) -> None:
    propose(root, bundle())
    new = propose(root, bundle("b")).rings["us-1"]["canary"]
    before = content(root.parent)
    promote(root, "early")
    after = content(root.parent)
    (place,) = {place for place in after if after[place] != before[place]}
    assert place == "apiary/clusters/us-1/rings/early/kustomization.yaml"
    old_lines, new_lines = before[place].splitlines(), after[place].splitlines()
    (pair,) = [pair for pair in zip(old_lines, new_lines, strict=True) if pair[0] != pair[1]]
    assert pair[1] == f'  - "../../bundles/{new}/early"'
    assert promote(root, "early").changes == ()
    assert propose(root, bundle("b")).changes == ()


def test_a_promotion_by_hand_stays(root: Path) -> None:
    former = propose(root, bundle()).rings["us-1"]["fleet"]
    new = propose(root, bundle("b")).rings["us-1"]["canary"]
    file = root / "clusters/us-1/rings/fleet/kustomization.yaml"
    file.write_text(file.read_text("utf-8").replace(former, new), "utf-8")
    plan = propose(root, bundle("b"))
    assert plan.changes == () and plan.rings["us-1"] == {"canary": new, "early": former, "fleet": new}


def test_rings_of_clusters_take_what_the_ring_of_other_clusters_has(root: Path) -> None:
    clusters = (TESTING, LIVE)
    former = propose(root, bundle(), clusters, BY_CLUSTER).rings["live-1"]["fleet"]
    new = propose(root, bundle("b"), clusters, BY_CLUSTER).rings
    assert new == {"test.example": {"canary": new["test.example"]["canary"]}, "live-1": {"fleet": former}}
    assert promote(root, "fleet", clusters, BY_CLUSTER).rings["live-1"]["fleet"] == new["test.example"]["canary"] != former


def test_a_ring_that_differs_between_clusters_is_not_taken_from(root: Path) -> None:
    clusters = (ONE, Cluster("us-2", ()))
    former = propose(root, bundle(), clusters).rings["us-1"]["canary"]
    new = propose(root, bundle("b"), clusters).rings["us-1"]["canary"]
    file = root / "clusters/us-2/rings/canary/kustomization.yaml"
    file.write_text(file.read_text("utf-8").replace(new, former), "utf-8")
    assert "has not the same bundle on all clusters" in messages(refused(lambda: promote(root, "early", clusters)))


@pytest.mark.parametrize("ring", ["canary", "nowhere"])
def test_a_ring_with_none_before_it_cannot_be_promoted(root: Path, ring: str) -> None:
    propose(root, bundle())
    assert "rings that follow another one: early, fleet" in messages(refused(lambda: promote(root, ring)))


def test_a_promotion_needs_a_tree(root: Path) -> None:
    assert "without apiary_promote first" in messages(refused(lambda: promote(root, "early")))


def test_a_bundle_goes_when_no_ring_named_it_before_the_run_either(root: Path) -> None:
    first = propose(root, bundle()).rings["us-1"]["canary"]
    second = propose(root, bundle("b")).rings["us-1"]["canary"]
    promote(root, "early")
    promote(root, "fleet")
    bundles = root / "clusters/us-1/bundles"
    assert propose(root, bundle("b")).changes == ()
    assert {path.name for path in bundles.iterdir()} == {first, second}
    third = propose(root, bundle("c")).rings["us-1"]["canary"]
    assert {path.name for path in bundles.iterdir()} == {second, third}
    texts = "".join(text for place, text in content(root).items() if place.startswith("policies/"))
    assert "c2-a" not in texts and "c2-b" in texts and "c2-c" in texts


def test_sets_of_clusters_outside_the_inventory_stay(root: Path) -> None:
    propose(root, bundle(), (ONE, LIVE), environment(CANARY, "{name: live, groups: [live]}"))
    before = content(root)
    for text in "bcd":
        propose(root, bundle(text), (ONE,), RINGS)
    after = content(root)
    live = {place for place in before if place.startswith(("clusters/live-1", "common/live-1", "policies/"))}
    assert live and all(after[place] == before[place] for place in live)


def test_files_of_others_are_left_alone(root: Path) -> None:
    propose(root, bundle())
    first = root / "clusters/us-1/bundles" / propose(root, bundle("b")).rings["us-1"]["fleet"]
    foreign = [root / "README.md", first / "note.md", first / "canary/extra.yaml", root / "clusters/us-1/rings/old/kustomization.yaml"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kind: Kustomization\n", "utf-8")
    promote(root, "early")
    promote(root, "fleet")
    propose(root, bundle("c"))
    assert all(path.read_text("utf-8") == "kind: Kustomization\n" for path in foreign)
    assert not (first / "canary/kustomization.yaml").exists()


def test_a_file_of_others_in_the_way_is_refused(root: Path) -> None:
    place = root / "argocd/applicationset.yaml"
    place.parent.mkdir(parents=True)
    place.write_text("kind: ApplicationSet\n", "utf-8")
    assert "is not ours" in messages(refused(lambda: propose(root, bundle())))
    assert content(root) == {"argocd/applicationset.yaml": "kind: ApplicationSet\n"}


@pytest.mark.parametrize("pattern", ["policies/*/network/high/*c2-a.yaml", "clusters/us-1/bundles/*/fleet/daemonset-*.yaml"])
def test_an_altered_bundle_is_refused(root: Path, pattern: str) -> None:
    propose(root, bundle())
    (path,) = root.glob(pattern)
    path.write_text(path.read_text("utf-8") + "# more\n", "utf-8")
    assert "was altered" in messages(refused(lambda: propose(root, bundle())))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "exactly one line"),
        ("  - ../../bundles/a/fleet\n  - ../../bundles/b/fleet", "exactly one line"),
        ("  - ../../bundles/a/canary", "exactly one line"),
        ("  - ../../bundles/production-0000/fleet", "which has nothing for ring fleet"),
    ],
)
def test_a_line_that_names_no_bundle_is_refused(root: Path, line: str, said: str) -> None:
    name = propose(root, bundle()).rings["us-1"]["fleet"]
    file = root / "clusters/us-1/rings/fleet/kustomization.yaml"
    file.write_text(file.read_text("utf-8").replace(f'  - "../../bundles/{name}/fleet"', line), "utf-8")
    error = refused(lambda: propose(root, bundle()))
    assert said in messages(error) and str(file) in messages(error)


def test_a_ring_that_is_gone_goes_and_the_others_learn_their_nodes_at_once(root: Path) -> None:
    propose(root, bundle())
    propose(root, bundle(), rings=environment(CANARY, FLEET))
    assert not (root / "clusters/us-1/rings/early").exists()
    (patch,) = load(root, "clusters/us-1/rings/fleet/nodes.yaml")
    assert patch["value"] == {"rule": {"key": "apiary.dev/ring", "operator": "NotIn", "values": ["canary"]}}
    assert patch["path"] == "/spec/template/spec/affinity"


def test_policies_lie_by_category_and_severity_to_the_byte(root: Path) -> None:
    made = bundle()
    propose(root, made)
    (path,) = root.glob("policies/*/network/high/cluster-c2-ranges-a.yaml")
    assert path.read_text("utf-8") == made.files["cluster-c2-ranges-a.yaml"]
    (generator,) = load(root, f"policies/{path.parts[-4]}/kustomization.yaml")["configMapGenerator"]
    assert generator["files"] == ["network/high/cluster-c2-a.yaml", "network/high/cluster-c2-ranges-a.yaml", "policies.tsv"]
    assert generator["options"]["immutable"] is True and generator["options"]["disableNameSuffixHash"] is True


def test_no_two_applications_own_the_same_object(root: Path) -> None:
    name = propose(root, bundle()).rings["us-1"]["canary"]
    owned: list[tuple[str, str]] = []
    for ring in ("canary", "early", "fleet"):
        directory = root / "clusters/us-1/bundles" / name / ring
        documents = [yaml.safe_load(path.read_text("utf-8")) for path in sorted(directory.glob("*.yaml"))]
        (kustomization,) = [one for one in documents if one["kind"] == "Kustomization"]
        owned += [(one["kind"], one["metadata"]["name"]) for one in documents if one["kind"] != "Kustomization"]
        owned += [("ConfigMap", yaml.safe_load(patch["patch"])[0]["value"]) for patch in kustomization["patches"]]
        (daemonset,) = [one for one in documents if one["kind"] == "DaemonSet"]
        used = {volume["configMap"]["name"] for volume in daemonset["spec"]["template"]["spec"]["volumes"]}
        assert {("ConfigMap", one) for one in used} <= set(owned)
    owned += [(one["kind"], one["metadata"]["name"]) for one in map(yaml.safe_load, content(root / "common/us-1").values())]
    assert len(owned) == len(set(owned)) and ("ServiceAccount", "apiary") in owned


def test_the_truth_of_a_ring_is_managed_without_its_content(root: Path) -> None:
    made = bundle()
    name = propose(root, made).rings["us-1"]["early"]
    truth = load(root, f"clusters/us-1/bundles/{name}/early/configmap-apiary-truth-early.yaml")
    assert "data" not in truth and truth["metadata"]["annotations"] == {"apiary.dev/bundle": made.digest}
    assert truth["metadata"]["labels"] == {"apiary.dev/kind": "truth", "apiary.dev/ring": "early"}


def test_a_cluster_gets_the_policies_of_its_groups(root: Path) -> None:
    propose(root, bundle(where=["databases"]), (TESTING, LIVE), BY_CLUSTER)
    sets = {
        ring: load(root, next(iter(root.glob(f"clusters/*/bundles/*/{ring}/kustomization.yaml"))).relative_to(root).as_posix())
        for ring in ("canary", "fleet")
    }
    files = {}
    for ring, kustomization in sets.items():
        (place,) = [one for one in kustomization["resources"] if one.startswith("../")]
        files[ring] = load(root, f"{place.removeprefix('../../../../../')}/kustomization.yaml")["configMapGenerator"][0]["files"]
    assert files["canary"] == ["policies.tsv"] and len(files["fleet"]) == 3


def test_a_cluster_without_a_ring_is_refused() -> None:
    assert "us-1 is in no ring" in messages(refused(lambda: layout.rings_of(ONE, BY_CLUSTER)))


def test_an_image_that_is_pinned_is_rendered_so() -> None:
    digest = f"sha256:{'0' * 64}"
    pinned = Cluster("us-1", (), digests={"1.7.0": digest, "1.6.1": "other"})
    assert {ring["imageDigest"] for ring in layout.values(pinned, RINGS.rings, bundle())["rings"]} == {digest}


def test_objects_of_one_name_in_two_namespaces_are_two_files() -> None:
    here, there = ({"apiVersion": "v1", "kind": "Role", "metadata": {"name": "apiary", "namespace": one}} for one in ("tetragon", "other"))
    made = layout.values(ONE, RINGS.rings, bundle())
    current = layout.render(ONE, RINGS.rings, bundle(), [*chart(made), here, there]).current
    assert {"common/us-1/role-apiary.yaml", "common/us-1/role-other.apiary.yaml"} <= current.keys()


@pytest.mark.parametrize("name", ["Upper", "under_score", "../up", "", "-a", "a" * 64])
def test_a_cluster_whose_name_cannot_be_a_directory_is_refused(name: str) -> None:
    assert "cannot be the name of a directory" in messages(refused(lambda: Cluster(name, ())))


def test_a_chart_without_rings_is_refused() -> None:
    assert "no DaemonSet for ring canary, early, fleet" in messages(refused(lambda: layout.render(ONE, RINGS.rings, bundle(), [])))


def test_every_application_has_a_name_of_its_own() -> None:
    pairs = [("a", "b-c"), ("a-b", "c"), ("a.b", "c"), ("a", "b"), ("a.b", ""), ("a", ""), ("common.a", ""), ("common", "a")]
    names = [argocd.identity(cluster, "tetragon", ring)["name"] for cluster, ring in pairs]
    assert len(set(names)) == len(pairs)


def test_the_application_set_syncs_rings_in_their_order(root: Path) -> None:
    propose(root, bundle())
    spec = load(root, "argocd/applicationset.yaml")["spec"]
    steps = [step["matchExpressions"][0]["values"] for step in spec["strategy"]["rollingSync"]["steps"]]
    assert steps == [["common"], ["ring-canary"], ["ring-early"], ["ring-fleet"]]
    assert "automated" not in spec["template"]["spec"]["syncPolicy"]
    patterns = [one["path"] for one in spec["generators"][0]["git"]["files"]]
    found = sorted(path.relative_to(root.parent).as_posix() for pattern in patterns for path in root.parent.glob(pattern))
    assert found == [
        "apiary/clusters/us-1/rings/canary/kustomization.yaml",
        "apiary/clusters/us-1/rings/early/kustomization.yaml",
        "apiary/clusters/us-1/rings/fleet/kustomization.yaml",
        "apiary/common/us-1/kustomization.yaml",
    ]
    for place in found:
        document = load(root.parent, place)
        assert "namespace" not in document and document["metadata"]["annotations"] == {"apiary.dev/namespace": "tetragon"}
        assert document["metadata"]["labels"]["apiary.dev/cluster"] == "us-1"
        assert [document["metadata"]["labels"]["apiary.dev/step"]] in steps


def test_the_settings_of_argo_cd_hold_the_check_as_it_is(root: Path) -> None:
    propose(root, bundle())
    data = load(root, "argocd/argocd-cm.yaml")["data"]
    assert data == {
        "resource.customizations.useOpenLibs.ConfigMap": "true",
        "resource.customizations.health.ConfigMap": argocd.health_check(SETTINGS.max_age),
    }


def test_owners_of_policies_own_their_files(root: Path) -> None:
    propose(root, bundle())
    lines = (root.parent / "CODEOWNERS").read_text("utf-8").splitlines()
    assert lines == [
        "# Written by apiary.tetragon.gitops: begin",
        "/apiary/argocd/ @example/sre",
        "/apiary/clusters/ @example/sre",
        "/apiary/common/ @example/sre",
        "/apiary/policies/*/network/high/cluster-c2-*.yaml @example/security",
        "/apiary/policies/*/network/high/cluster-c2-ranges-*.yaml @example/security",
        "# Written by apiary.tetragon.gitops: end",
    ]


def test_code_owners_of_others_stay_as_they_are(root: Path) -> None:
    file = root.parent / "CODEOWNERS"
    file.parent.mkdir(parents=True)
    file.write_text("* @example/everybody", "utf-8")
    propose(root, bundle())
    file.write_text(file.read_text("utf-8") + "/docs/ @example/docs\n", "utf-8")
    propose(root, bundle("b", names=("tor",)))
    text = file.read_text("utf-8")
    assert text.startswith("* @example/everybody\n#") and text.endswith("end\n/docs/ @example/docs\n")
    assert "cluster-tor-*" in text and "c2" not in text


def test_planning_writes_nothing(root: Path) -> None:
    plan = tree.propose(root, RINGS, wanted(root, bundle()))
    assert plan.changes and not root.parent.exists()


def test_the_lines_that_name_a_bundle_come_after_it(root: Path) -> None:
    places = [change.path.relative_to(root.parent).as_posix() for change in tree.propose(root, RINGS, wanted(root, bundle())).changes]
    lines = [number for number, place in enumerate(places) if "/rings/" in place and place.endswith("kustomization.yaml")]
    others = [number for number, place in enumerate(places) if "/bundles/" in place or "/policies/" in place]
    assert len(lines) == 3 and min(lines) > max(others)


def test_a_batch_is_how_many_agents_are_changed_at_a_time() -> None:
    made = layout.values(ONE, RINGS.rings, bundle())
    assert [ring["maxSurge"] for ring in made["rings"]] == ["100%", 7, "10%"]
    assert {ring["bundle"] for ring in made["rings"]} == {bundle().digest}
    assert made["library"] == {"enabled": False}
