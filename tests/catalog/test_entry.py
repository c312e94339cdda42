"""What an entry may say. Goes through the loader, so that each refusal is seen as its reader sees it."""

import copy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from catalog import ConfigInvalid, Entry, Limits, Mount, Package, Remote, Secret, Tasks, Volume
from catalog.reference import check_id, check_image, check_remote_url, check_target
from tests.catalog.files import BOX, IMAGE, document, load, only_problem, problems

PACKAGED = """\
title: Box
description: Keeps things in a box.
package: {ecosystem: pypi, name: box-server, version: "1.2.3"}
command: [box-server]
"""
REMOTE = """\
title: Box
description: Keeps things in a box.
remote: {url: "https://box.example/mcp"}
"""


def box(**more: object) -> Entry:
    parts = {"id": "box", "title": "Box", "description": "Keeps things in a box.", "image": IMAGE}
    return Entry.model_validate({**parts, **more})


def refusal(folder: Path, body: str) -> str:
    """Return the message, having checked that it names the file, a line inside of the entry, and the entry."""
    text = document({"box": body})
    problem = only_problem(folder, text)
    assert problem.file == folder / "catalog.yaml"
    assert problem.line is not None
    assert 3 <= problem.line <= text.count("\n")
    assert problem.entry == "box"
    return problem.message


def test_smallest_entry_gets_safe_defaults(tmp_path: Path) -> None:
    entry = load(tmp_path, document({"box": BOX})).entry("box")
    assert entry.network == "none"
    assert entry.limits == Limits(
        memory_mib=512,
        cpus=1.0,
        pids=128,
        tmpfs_mib=64,
        start_timeout_s=60,
        call_timeout_s=60,
        idle_s=600,
    )
    assert (entry.package, entry.remote, entry.command, entry.args, entry.secrets) == (None, None, (), (), ())
    assert dict(entry.env) == {}


def test_every_key_of_an_entry_is_read(tmp_path: Path) -> None:
    body = f"""\
title: Box
description: "Keeps things: in a box."
image: {IMAGE}
package:
  ecosystem: npm
  name: "@box/server"
  version: "2.0.1-rc.1"
  pins: ["zod@3.25.0"]
  apt: [git, libstdc++6]
remote:
  url: https://box.example/mcp?a=b
  transport: sse
  headers: {{X-Team: blue}}
command: [box, "--level", "3"]
args: ["--level", "3"]
env: {{LEVEL: "3", EMPTY: ""}}
secrets:
  - {{name: box.api_key, env: BOX_KEY, required: false}}
volumes:
  - {{name: data, target: /data}}
network: internet
limits: {{memory_mib: 1024, cpus: 0.5, pids: 64, tmpfs_mib: 8, start_timeout_s: 5, call_timeout_s: 2.5, idle_s: 9}}
tasks: {{after_s: 0, only: [put]}}
categories: [files, data]
license: MIT
source: https://box.example/source
tools: [open, shut.tight]
"""
    assert load(tmp_path, document({"box": body})).entry("box") == Entry(
        id="box",
        title="Box",
        description="Keeps things: in a box.",
        image=IMAGE,
        package=Package(
            ecosystem="npm",
            name="@box/server",
            version="2.0.1-rc.1",
            pins=("zod@3.25.0",),
            apt=("git", "libstdc++6"),
        ),
        remote=Remote(url="https://box.example/mcp?a=b", transport="sse", headers={"X-Team": "blue"}),
        command=("box", "--level", "3"),
        args=("--level", "3"),
        env={"LEVEL": "3", "EMPTY": ""},
        secrets=(Secret(name="box.api_key", env="BOX_KEY", required=False),),
        volumes=(Volume(name="data", target="/data"),),
        network="internet",
        tasks=Tasks(after_s=0, only=("put",)),
        limits=Limits(
            memory_mib=1024,
            cpus=0.5,
            pids=64,
            tmpfs_mib=8,
            start_timeout_s=5,
            call_timeout_s=2.5,
            idle_s=9,
        ),
        categories=("files", "data"),
        license="MIT",
        source="https://box.example/source",
        tools=("open", "shut.tight"),
    )


def test_entry_cannot_be_changed() -> None:
    entry = box(env={"A": "1"})
    with pytest.raises(ValidationError):
        entry.title = "Other"
    with pytest.raises(TypeError):
        entry.env["A"] = "2"  # type: ignore[index]  # the point of the test
    assert box(env={"A": "1"}) in {entry}


def test_entry_refuses_an_unknown_key_from_python_too() -> None:
    with pytest.raises(ValidationError, match="privileged"):
        box(privileged=True)


def test_env_does_not_follow_the_mapping_it_was_made_from() -> None:
    env = {"A": "1"}
    entry = box(env=env)
    env["A"] = "2"
    assert entry.env["A"] == "1"


@pytest.mark.sec("SEC-061")
def test_text_that_looks_like_a_template_is_kept_as_it_is(tmp_path: Path) -> None:
    body = BOX + 'args: ["{{box.path|volume}}", "${HOME}", "$(id)", "-v", "--privileged"]\n'
    body += 'env: {A: "{{secrets.other}}", B: "{% x %}{{ {{nested}} }}"}\n'
    entry = load(tmp_path, document({"box": body})).entry("box")
    assert entry.args == ("{{box.path|volume}}", "${HOME}", "$(id)", "-v", "--privileged")
    assert dict(entry.env) == {"A": "{{secrets.other}}", "B": "{% x %}{{ {{nested}} }}"}


@pytest.mark.sec("SEC-062")
def test_line_break_in_an_argument_stays_in_that_argument(tmp_path: Path) -> None:
    entry = load(tmp_path, document({"box": BOX + 'args: ["a\\n-v\\n/:/host"]\n'})).entry("box")
    assert entry.args == ("a\n-v\n/:/host",)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "example/box:2"},
        {"args": ("x",)},
        {"env": {"A": "1"}},
        {"network": "internet"},
        {"volumes": (Volume(name="data", target="/data"),)},
        {"limits": Limits(pids=7)},
        {"secrets": (Secret(name="box.key", env="KEY"),)},
        {"remote": Remote(url="https://box.example/mcp")},
        {"package": Package(ecosystem="pypi", name="box", version="1"), "command": ("box",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_digest_changes_with_each_part_that_decides_what_runs(change: dict[str, object]) -> None:
    assert box(**change).digest != box().digest


def test_digest_ignores_what_is_only_shown_and_the_order_of_env() -> None:
    shown = {"categories": ("x",), "license": "MIT", "source": "https://box.example", "tools": ("a",)}
    assert box(**shown).digest == box().digest
    assert box(env={"A": "1", "B": "2"}).digest == box(env={"B": "2", "A": "1"}).digest
    assert box(args=("a b",)).digest != box(args=("a", "b")).digest
    assert len(box().digest) == 64


def test_digest_changes_with_the_way_in_which_a_secret_arrives() -> None:
    ways = ({"env": "A"}, {"env": "B"}, {"file": "a"}, {"env": "A", "file": "a"}, {"env": "A", "plain_env": True})
    digests = {box(secrets=(Secret(name=name, **way),)).digest for way in ways for name in ("box.key", "box.other")}
    assert len(digests) == 2 * len(ways)


def test_copy_with_changes_is_checked_and_computes_its_own_digest() -> None:
    entry = box(env={"A": "1"})
    before = entry.digest
    assert copy.copy(entry).digest == before
    changed = entry.model_copy(update={"network": "internet"})
    assert changed.digest == box(env={"A": "1"}, network="internet").digest != before
    with pytest.raises(ValidationError):
        entry.model_copy(update={"image": "no digest"})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("title: Box\ndescription: Nothing to run.\n", "add image, package or remote"),
        (PACKAGED.replace("command: [box-server]\n", ""), "has a package but no command"),
        (BOX + "command: [box]\n", "no package to run it from"),
        (PACKAGED.replace("[box-server]", "[/bin/sh, -c]"), "without a path"),
        (PACKAGED.replace("[box-server]", '["", x]'), "without a path"),
        (PACKAGED.replace("[box-server]", '["--eval"]'), "without a path"),
        (PACKAGED + "args: [x]\n", "has args but no image"),
        (REMOTE + "env: {A: b}\n", "is only remote or per call"),
        (BOX + "volumes: [{name: a, target: /data}, {name: b, target: /data}]\n", "target of two volumes"),
        (BOX + "volumes: [{name: a, target: /data}, {name: a, target: /more}]\n", "volume a is listed twice"),
        (BOX + "secrets: [{name: box.k, env: K}]\nenv: {K: x}\n", "both in env and from a secret"),
        (BOX + "secrets: [{name: box.k, env: K}, {name: box.l, env: K}]\n", "two secrets set the variable K"),
        (BOX + "tools: [a, b, a]\n", "the tool a is listed twice"),
        (BOX + "categories: [a, a]\n", "the category a is listed twice"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path, body: str, words: str) -> None:
    assert words in refusal(tmp_path, body)


@pytest.mark.sec("SEC-060")
@pytest.mark.parametrize("name", ["github.token", "BOX.token", "boxes.token", "b.box.token", "*.token", "token"])
def test_entry_cannot_ask_for_a_secret_of_another_server(tmp_path: Path, name: str) -> None:
    refusal(tmp_path, BOX + f'secrets: [{{name: "{name}", env: TOKEN}}]\n')


@pytest.mark.parametrize(
    "url",
    [
        "http://box.example/mcp",
        "http://127.0.0.1.box.example/mcp",
        "http://10.0.0.1/mcp",
        "http://0.0.0.0/mcp",
        "http://2130706433/mcp",
        "http://localhost.box.example/",
        "ftp://box.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://",
        "https:///mcp",
        "https://user:pass@box.example/",
        "https://box.example@evil.example/",
        "https://box.example/#part",
        "https://box.example:99999/",
        "https://box.example:0/",
        "https://box example/",
        "https://b\u00f6x.example/",
        "https://box.example\\@evil.example/",
        "//box.example/",
        "",
    ],
)
def test_url_of_a_remote_must_be_https_to_a_host(tmp_path: Path, url: str) -> None:
    body = REMOTE.replace('"https://box.example/mcp"', "'" + url + "'")
    message = refusal(tmp_path, body)
    assert message.startswith("remote.url: ")
    assert "pass" not in message.replace("password", "")


@pytest.mark.parametrize(
    "url",
    [
        "https://box.example/mcp",
        "https://box.example:8443",
        "http://127.0.0.1:8080/mcp",
        "http://[::1]:1/",
        "http://localhost/x",
    ],
)
def test_https_and_loopback_urls_are_accepted(url: str) -> None:
    assert check_remote_url(url) == url


CONFIGURED = """\
transport: http
port: 8080
path: /mcp
env: {FIXED: "1"}
config:
  - {name: level, type: string, enum: [low, high], default: low, arg: "--level="}
  - {name: size, type: integer, env: BOX_SIZE, example: 3}
  - {name: flags.dry, type: boolean, env: BOX_DRY}
  - {name: folders, type: list, required: true, arg: ""}
config_any_of: [[size], [flags.dry]]
mounts:
  - {config: folders, target: /work, read_only: false}
  - {source: /srv/box, target: /run/keys/box}
network: internet
hosts: ["api.box.example:443", "*.cdn.example:443"]
oauth: {provider: box, secret: box.token, env: BOX_TOKEN, scopes: ["box:read", "box:write"]}
publisher: Box makers
dynamic_tools: true
"""


def test_values_take_the_place_of_settings_as_whole_arguments_and_variables(tmp_path: Path) -> None:
    entry = load(tmp_path, document({"box": BOX + CONFIGURED})).entry("box")
    folders = ["/home/a b", "/home/-v {{level}}"]
    ready = entry.configured({"size": 7, "flags.dry": False, "folders": folders})
    assert ready.args == ("--level=low", "/work/a b", "/work/-v {{level}}")
    assert dict(ready.env) == {"FIXED": "1", "BOX_SIZE": "7", "BOX_DRY": "false"}
    assert [(mount.source, mount.target, mount.read_only) for mount in ready.mounts] == [
        ("/home/a b", "/work/a b", False),
        ("/home/-v {{level}}", "/work/-v {{level}}", False),
        ("/srv/box", "/run/keys/box", True),
    ]
    assert ready.config == ready.config_any_of == ()
    assert ready.digest != entry.digest


def test_all_that_is_wrong_with_values_is_told_at_once_and_never_repeated(tmp_path: Path) -> None:
    entry = load(tmp_path, document({"box": BOX + CONFIGURED})).entry("box")
    with pytest.raises(ConfigInvalid) as caught:
        entry.configured({"levl": "low", "level": "s3cret", "size": "s3cret"})
    text = str(caught.value)
    assert 'box: there is no setting "levl" (did you mean "level"?)' in text
    assert "box: the setting level must be one of low, high" in text
    assert "box: the setting size must be a whole number" in text
    assert "box: the setting folders is missing; it is a list of texts" in text
    assert "one of these groups of settings is needed: size or flags.dry" in text
    assert "s3cret" not in text


@pytest.mark.sec("SEC-067")
@pytest.mark.parametrize("path", ["/etc", "/var/run/docker.sock", "relative", "/a/../b", "/a:rw", "/a,b", "/a\nb"])
def test_path_that_may_not_be_mounted_is_no_value_for_a_mount(path: str) -> None:
    entry = box(config=({"name": "folder"},), mounts=({"config": "folder"},))
    with pytest.raises(ConfigInvalid, match="box: a path to mount "):
        entry.configured({"folder": path})


@pytest.mark.sec("SEC-061")
@given(st.text().filter(lambda text: "\0" not in text))
def test_value_stays_one_element_whatever_it_contains(value: str) -> None:
    entry = box(config=({"name": "a", "arg": "--a="}, {"name": "b", "env": "B"}), env={"C": "{{a}}"})
    ready = entry.configured({"a": value, "b": value})
    assert ready.args == ("--a=" + value,)
    assert dict(ready.env) == {"B": value, "C": "{{a}}"}


def test_secret_of_a_remote_goes_into_a_header(tmp_path: Path) -> None:
    body = REMOTE + 'secrets: [{name: box.key, header: Authorization, prefix: "Bearer "}]\n'
    assert load(tmp_path, document({"box": body})).entry("box").secrets == (
        Secret(name="box.key", header="Authorization", prefix="Bearer "),
    )


def test_entry_can_run_one_container_for_each_call(tmp_path: Path) -> None:
    body = """\
title: Box
description: Keeps things in a box.
per_call:
  - name: put
    description: Puts a file into the box.
    image: example/put:1
    command: [put]
    parameters: [{name: path, required: true, arg: ""}, {name: args, type: list, arg: ""}]
    mounts: [{config: path}]
tools: [put]
"""
    (tool,) = load(tmp_path, document({"box": body})).entry("box").per_call
    assert (tool.name, tool.command, tool.engine_socket) == ("put", ("put",), False)
    assert tool.mounts == (Mount(config="path"),)


PER_CALL = "title: Box\ndescription: Keeps things in a box.\nper_call:\n  - name: put\n    description: Puts.\n"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (BOX + "transport: http\n", "transport http but no port"),
        (BOX + "port: 80\n", "port or path but transport stdio"),
        (PACKAGED + "transport: sse\nport: 80\n", "no image that could serve it"),
        (BOX + 'hosts: ["box.example:443"]\n', "network: none"),
        (BOX + 'network: internet\nhosts: ["box.example"]\n', "no host and port"),
        (BOX + 'network: internet\nhosts: ["https://box.example:443"]\n', "no host and port"),
        (BOX + "config: [{name: a}, {name: a}]\n", "the setting a is listed twice"),
        (BOX + "config: [{name: a, env: A}]\nenv: {A: b}\n", "the variable A is set by a setting and elsewhere"),
        (BOX + "config: [{name: a, type: integer, default: b}]\n", "the default of a must be a whole number"),
        (BOX + "config: [{name: a, required: true, default: b}]\n", "is required and has a default"),
        (BOX + "config: [{name: a, type: list, enum: [b]}]\n", "which is for type string"),
        (BOX + "config: [{name: a, type: text}]\n", 'config[0].type: is "text"'),
        (BOX + "config: [{name: a, defualt: b}]\n", 'did you mean "default"?'),
        (BOX + "mounts: [{config: a, target: /data}]\n", "names the setting a, which is not in config"),
        (BOX + "mounts: [{source: /x, config: a, target: /data}]\n", "either config"),
        (BOX + "mounts: [{source: /srv/../etc, target: /data}]\n", "no usable path of the host"),
        (BOX + "mounts: [{source: /srv, target: /run/lockgate}]\n", "belongs to the system"),
        (BOX + "config_any_of: [[a]]\n", "names the setting a, which is not in config"),
        (BOX + "secrets: [{name: box.k}]\n", "goes nowhere"),
        (BOX + "secrets: [{name: box.k, header: X-Key}]\n", "but is not remote"),
        (BOX + "oauth: {provider: box, secret: other.token}\n", "a secret of another server"),
        (BOX + 'oauth: {provider: box, scopes: ["a b"]}\n', "is no scope"),
        (PER_CALL + "    image: example/put:1\nimage: example/put:1\n", "per_call beside image"),
        (PER_CALL + "    image: example/put:1\n    mounts: [{config: x}]\n", "the parameter x, which there is not"),
        (PER_CALL + "    image: example/put:1\n    mounts: [{source: /srv}]\n", "needs config"),
        (PER_CALL + "    image: example/put:1\n    parameters: [{name: a, env: A}]\n", "use arg"),
        (PER_CALL + "    image: example/put:1\n    parametres: []\n", 'did you mean "parameters"?'),
    ],
)
def test_settings_and_their_like_are_checked(tmp_path: Path, body: str, words: str) -> None:
    assert words in refusal(tmp_path, body)


@pytest.mark.parametrize("header", ["Host", "content-length", "Mcp-Session-Id", "bad name", "x:y", ""])
def test_headers_that_the_gateway_sets_cannot_be_overridden(tmp_path: Path, header: str) -> None:
    refusal(tmp_path, REMOTE.replace("}", f', headers: {{"{header}": x}}}}'))


def test_header_value_with_a_line_break_is_refused(tmp_path: Path) -> None:
    refusal(tmp_path, REMOTE.replace("}", ', headers: {X-A: "a\\nX-B: b"}}'))


@pytest.mark.sec("SEC-067")
@pytest.mark.parametrize(
    "target",
    [
        "data", "/", "//data", "/data/", "/data/../etc", "/data/./x", "/etc", "/etc/cron.d", "/proc", "/proc/1",
        "/sys", "/dev", "/dev/shm", "/usr/bin", "/bin", "/lib64", "/run/docker.sock", "/var/run/docker.sock",
        "/root", "/home", "/tmp", "/data:ro", "/data,rw", "/da ta", "C:/data", "~", "/d\u0430ta", "",
    ],
)  # fmt: skip
def test_volume_over_a_part_of_the_system_or_an_odd_path_is_refused(tmp_path: Path, target: str) -> None:
    message = refusal(tmp_path, BOX + f'volumes: [{{name: data, target: "{target}"}}]\n')
    assert message.startswith("volumes[0].target: ")


@pytest.mark.parametrize("target", ["/data", "/root/.kube", "/home/appuser/.cache", "/app/dist", "/procedure"])
def test_ordinary_volume_targets_are_accepted(target: str) -> None:
    assert check_target(target) == target


@pytest.mark.parametrize(
    "image",
    [
        "mcp/time", "mcp/Time:1", "MCP/time:1", "mcp/time@sha256:abc", "mcp/time@md5:" + "a" * 32, ":1", "mcp/time:",
        "https://ghcr.io/x/y:1", "mcp//time:1", "/mcp/time:1", "mcp/time:1 --privileged", "-v:1", "mcp/time:a/b",
        "mcp/time@sha256:" + "A" * 64, "mcp/time@sha256:" + "a" * 64 + "\n", "mcp/t\u0456me:1", "mcp/../time:1", "",
        "a" * 300 + ":1",
    ],
)  # fmt: skip
def test_malformed_image_is_refused(image: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_image(image)


@pytest.mark.parametrize(
    "image",
    [
        "time:1",
        "mcp/time:latest",
        IMAGE,
        "ghcr.io/a/b_c/d-e:v1.0@sha256:" + "0" * 64,
        "localhost:5000/time:1",
        "registry:5000/time@sha256:" + "1" * 64,
    ],
)
def test_image_with_tag_or_digest_is_accepted(image: str) -> None:
    assert check_image(image) == image


@pytest.mark.parametrize(
    ("ecosystem", "name", "version", "pin"),
    [
        ("pypi", "box", ">=1", ""),
        ("pypi", "box", "1.*", ""),
        ("pypi", "box", "latest", ""),
        ("pypi", "--index-url=https://evil.example", "1", ""),
        ("pypi", "box @ https://evil.example/x.whl", "1", ""),
        ("pypi", "box", "1", "--pre"),
        ("pypi", "box", "1", "mcp"),
        ("pypi", "box", "1", "mcp @ file:///x"),
        ("pypi", "box", "1", "mcp<2; python_version>'3'"),
        ("npm", "box", "^1.2.3", ""),
        ("npm", "box", "1.2", ""),
        ("npm", "box", "latest", ""),
        ("npm", "../box", "1.2.3", ""),
        ("npm", "-g", "1.2.3", ""),
        ("npm", "@box", "1.2.3", ""),
        ("npm", "Box", "1.2.3", ""),
        ("npm", "box", "1.2.3", "zod@^3"),
        ("npm", "box", "1.2.3", "zod<4"),
    ],
)
def test_package_that_is_not_one_exact_version_is_refused(
    tmp_path: Path, ecosystem: str, name: str, version: str, pin: str
) -> None:
    pins = f', pins: ["{pin}"]' if pin else ""
    package = f'{{ecosystem: {ecosystem}, name: "{name}", version: "{version}"{pins}}}'
    body = PACKAGED.replace('{ecosystem: pypi, name: box-server, version: "1.2.3"}', package)
    assert refusal(tmp_path, body).startswith("package: ")


@pytest.mark.parametrize(
    ("ecosystem", "version"),
    [("pypi", "2026.10.19"), ("pypi", "0.0.1a7"), ("pypi", "1!2.0.post1.dev2+local.3"), ("npm", "2026.8.31")],
)
def test_exact_versions_of_both_ecosystems_are_accepted(ecosystem: str, version: str) -> None:
    package = Package.model_validate({"ecosystem": ecosystem, "name": "box", "version": version})
    assert package.version == version


@pytest.mark.parametrize(
    "limits",
    [
        "memory_mib: 0", "memory_mib: -5", "memory_mib: 1.5", "memory_mib: true", "cpus: 0", "cpus: .inf",
        "cpus: 1_0", "pids: 0x10", "pids: 0o17", "pids: 010", "pids: 1e3", "pids: 1:30", 'pids: "128"',
        "tmpfs_mib: yes", "idle_s: 0", "start_timeout_s: 1e9", "call_timeout_s: 99999999", "pids: [1]", "pids: ~",
        "pids: 99999999999999999999999999",
    ],
)  # fmt: skip
def test_limit_out_of_range_or_not_in_plain_digits_is_refused(tmp_path: Path, limits: str) -> None:
    assert refusal(tmp_path, BOX + f"limits: {{{limits}}}\n").startswith("limits.")


@pytest.mark.parametrize(
    "tasks",
    [
        "after_s: -1",
        "after_s: 3601",
        'after_s: "2"',
        "after_s: yes",
        "only: [a, a]",
        'only: [""]',
        "only: a",
    ],
)
def test_wrong_word_on_tasks_is_refused(tmp_path: Path, tasks: str) -> None:
    assert refusal(tmp_path, BOX + f"tasks: {{{tasks}}}\n").startswith("tasks.")


@pytest.mark.parametrize("key", ["1A", "A-B", "A B", "A=B", "\u0410", ""])
def test_malformed_variable_name_is_refused(tmp_path: Path, key: str) -> None:
    refusal(tmp_path, BOX + f'env: {{"{key}": x}}\n')


@pytest.mark.parametrize(
    "line",
    ['title: ""', 'title: "  "', 'title: "a\\nb"', "title: " + "x" * 81, 'description: "a\\nb"',
     "description: " + "x" * 501],
)  # fmt: skip
def test_title_and_description_are_one_visible_line(tmp_path: Path, line: str) -> None:
    key = line.split(":", maxsplit=1)[0]
    body = "".join(other + "\n" for other in BOX.splitlines() if not other.startswith(key)) + line + "\n"
    assert refusal(tmp_path, body).startswith(key + ": ")


@pytest.mark.sec("SEC-078")
@pytest.mark.parametrize(
    "id",
    [
        "t\u0456me",
        "g\u0131thub",
        "\uff47it",
        "time\u200b",
        "a__b",
        "a_",
        "a-",
        "_a",
        "1a",
        "a.b",
        "a b",
        "a/b",
        "a" * 49,
    ],
)
def test_id_that_could_be_mistaken_or_misread_is_refused(tmp_path: Path, id: str) -> None:
    found = problems(tmp_path, document({id: BOX}))
    assert {problem.line for problem in found} == {3}
    assert all(problem.entry for problem in found)
    assert str(found[0]).isprintable()


@pytest.mark.sec("SEC-078")
def test_homoglyph_is_named_in_the_message(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, document({"t\u0456me": BOX}))
    assert "U+0456 (CYRILLIC SMALL LETTER BYELORUSSIAN-UKRAINIAN I)" in problem.message


@pytest.mark.sec("SEC-078")
def test_ids_that_differ_only_in_capitals_are_refused(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, document({"SQLite": BOX, "sqlite": BOX}))
    assert (problem.line, problem.entry) == (7, "sqlite")
    assert 'differs from "SQLite" only in capitals' in problem.message


@pytest.mark.sec("SEC-078")
@pytest.mark.parametrize(
    ("one", "other"),
    [("paypal", "paypaI"), ("box1", "boxl"), ("b0x", "box"), ("a_b", "a-b"), ("barn", "bam"), ("vvix", "Wix")],
)
def test_ids_that_look_alike_are_refused(tmp_path: Path, one: str, other: str) -> None:
    problem = only_problem(tmp_path, document({one: BOX, other: BOX}))
    assert (problem.line, problem.entry) == (7, other)
    assert f'looks like "{one}"' in problem.message


@pytest.mark.sec("SEC-061")
@pytest.mark.parametrize(
    "text",
    [
        "{{7*7}}", "${7*7}", "#{7*7}", "<%= 7*7 %>", "{{config}}", "{{''.__class__.__mro__[1].__subclasses__()}}",
        "{{box.a}}", "{{{{box.a}}}}", "{{box.a|volume|into}}", "${box.a}", "$A", "%(a)s", "{a}", "{0.__class__}",
        "$(id)", "`id`", "\n--privileged", "-v /:/host", "a b", "'; rm -rf / #",
    ],
)  # fmt: skip
@pytest.mark.sec("SEC-062")
def test_no_text_is_expanded_in_the_catalog_or_in_a_value(tmp_path: Path, text: str) -> None:
    entry = box(
        args=(text,), env={"FIXED": text}, config=({"name": "a", "arg": ""}, {"name": "b", "env": "B", "default": text})
    )
    ready = entry.configured({"a": text})
    assert ready.args == (text, text)
    assert dict(ready.env) == {"FIXED": text, "B": text}
    assert ready.configured({}) == ready


ID_PARTS = st.lists(st.from_regex(r"[A-Za-z0-9]{1,6}", fullmatch=True), min_size=1, max_size=5)


@given(first=st.sampled_from("abcXYZ"), parts=ID_PARTS, joint=st.sampled_from("_-"))
def test_letters_and_digits_joined_by_single_marks_are_always_an_id(first: str, parts: list[str], joint: str) -> None:
    id = first + joint.join(parts)
    assert check_id(id) == id


@pytest.mark.sec("SEC-078")
@given(st.text(max_size=60))
def test_accepted_ids_are_ascii_and_never_make_a_qualified_name_ambiguous(text: str) -> None:
    try:
        id = check_id(text)
    except ValueError:
        return
    assert id == text
    assert id.isascii()
    assert 1 <= len(id) <= 48
    # With "__" between server and tool, the first "__" is always the separator.
    assert f"{id}___x".index("__") == len(id)


@pytest.mark.sec("SEC-078")
@given(
    st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
    st.from_regex(r"[A-Za-z0-9_-]{1,20}", fullmatch=True),
)
def test_two_servers_and_tools_never_share_a_qualified_name(a: str, x: str, b: str, y: str) -> None:
    for id in (a, b):
        try:
            check_id(id)
        except ValueError:
            return
    assert (a, x) == (b, y) or f"{a}__{x}" != f"{b}__{y}"


@pytest.mark.sec("SEC-067")
@pytest.mark.parametrize(
    "asked",
    [
        "privileged: true",
        "network: host",
        "network: bridge",
        "network: container:other",
        "cap_add: [SYS_ADMIN]",
        "devices: [/dev/sda]",
        "device: /dev/kvm",
        "security_opt: [seccomp=unconfined]",
        "pid: host",
        "ipc: host",
        "userns: host",
        "user: root",
        "volumes_from: [other]",
        "ports: ['80:80']",
        "extra_hosts: ['a:1.2.3.4']",
        "sysctls: {net.ipv4.ip_forward: 1}",
        "labels: {lockgate.gateway: x}",
        "entrypoint: [sh]",
        "restart: always",
        "read_only: false",
        "init: false",
        "links: [other]",
        "dns: [8.8.8.8]",
        "cgroup_parent: /",
        "volumes: [{name: data, target: /data, driver: local}]",
        "volumes: ['/:/host']",
        "volumes: [{name: ../x, target: /data}]",
        "volumes: [{name: /etc, target: /data}]",
        "limits: {memory_mib: -1}",
        "limits: {pids: 0}",
        "limits: {cpus: 0}",
        "limits: {cpus: .inf}",
        "limits: {tmpfs_mib: 0}",
        "limits: {gpus: -1}",
        "limits: {volume_mib: 0}",
        "container_runtime: ../../bin/sh",
        "container_runtime: '--privileged'",
        "mounts: [{source: /srv/a, target: /data, propagation: shared}]",
        "mounts: [{source: ../a, target: /data}]",
        "mounts: [{source: /srv/a/, target: /data}]",
    ],
)
def test_an_entry_cannot_ask_for_more_than_its_box(tmp_path: Path, asked: str) -> None:
    refusal(tmp_path, BOX + asked + "\n")


def test_built_in_server_has_nothing_that_runs_elsewhere() -> None:
    base = {"id": "agent", "title": "Agent", "description": "Works.", "built_in": "agent"}
    assert Entry.model_validate(base).built_in == "agent"
    for more in ({"image": "example/box:1"}, {"remote": {"url": "https://example.org/mcp"}}, {"network": "internet"}):
        with pytest.raises(ValidationError, match="such a server is part of the gateway"):
            Entry.model_validate({**base, **more})
    with pytest.raises(ValidationError):
        Entry.model_validate({**base, "built_in": "other"})
