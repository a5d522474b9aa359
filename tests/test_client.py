"""The browser's modules as files: what Django's static files make of them, and the package for npm.

What they do is tested by `node --test` (tests/js/) and in browsers.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage
from django.core.management import call_command

from .plugins import require_program, require_that

ROOT = Path(__file__).resolve().parent.parent
STATIC = ROOT / "events" / "static" / "events"
PACKAGE = json.loads((STATIC / "package.json").read_text())
#: What is left of a module without its comments, texts kept: enough for modules that are written as ours are.
COMMENTS = re.compile(r"/\*.*?\*/|^\s*//[^\n]*$", re.DOTALL | re.MULTILINE)
IMPORTS = re.compile(r"""(?:(?<!["'])\bfrom\s*|\bimport\s*\(?\s*)["']([^"']+)["']""")


def run(*command: str | Path, cwd: Path, **more: str) -> str:
    """What a program prints. It has a cache of its own and no network to go to."""
    environment = {
        **os.environ,
        "npm_config_cache": str(cwd / "cache"),
        "npm_config_offline": "true",
        "npm_config_update_notifier": "false",
        **more,
    }
    done = subprocess.run(command, check=False, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def imports(path: Path) -> list[str]:
    return IMPORTS.findall(COMMENTS.sub("", path.read_text()))


def test_the_search_for_imports_finds_them(tmp_path):
    """Or the tests below would hold nothing."""
    path = tmp_path / "module.js"
    path.write_text(
        """
        // import { a } from "./comment.js";
        /** @import { A } from "./types.js" */
        import { b,
          c } from "./one.js";
        import "./two.js";
        export * from './three.js';
        const late = await import("./four.js");
        const none = params.has("from") && headers.get("X-Name");
        """
    )
    assert imports(path) == ["./one.js", "./two.js", "./three.js", "./four.js"]


class AggregatingStorage(ManifestStaticFilesStorage):
    """As the documentation of Django says to have names with hashes in modules, too."""

    support_js_module_import_aggregation = True


@pytest.mark.parametrize("storage", [ManifestStaticFilesStorage, AggregatingStorage])
def test_modules_find_each_other_among_hashed_static_files(storage, settings, tmp_path):
    """Each import of each module leads to a file; to one with a hash where Django rewrites imports."""
    settings.STATIC_ROOT = str(tmp_path)
    settings.STORAGES = {
        **settings.STORAGES,
        "staticfiles": {"BACKEND": f"{storage.__module__}.{storage.__qualname__}"},
    }
    call_command("collectstatic", interactive=False, verbosity=0, ignore_patterns=["admin"])

    hashed = json.loads((tmp_path / "staticfiles.json").read_text())["paths"]
    ours = {name: path for name, path in hashed.items() if name.startswith("events/") and name.endswith(".js")}
    assert set(ours) == {f"events/{path.name}" for path in STATIC.glob("*.js")}
    assert all(name != path for name, path in ours.items())
    found = []
    for name, path in ours.items():
        for target in imports(tmp_path / path):
            if not target.startswith("."):
                # What a bundler or an import map of the site's finds.
                assert (name, target) == ("events/react.js", "react")
                continue
            resolved = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            assert (tmp_path / resolved).is_file(), f"{path} imports {target}"
            assert (resolved in hashed.values()) == (storage is AggregatingStorage), f"{path} imports {target}"
            found.append(resolved)
    assert found


def test_modules_import_nothing_but_each_other_and_react():
    """No package is needed to use them as they are served."""
    names = {path.name for path in STATIC.glob("*.js")}
    for path in STATIC.glob("*.js"):
        for target in imports(path):
            assert target.removeprefix("./") in names or (path.name, target) == ("react.js", "react"), path.name


def test_the_package_for_npm_has_the_version_of_the_one_for_python():
    """They speak to each other, and are released together."""
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert PACKAGE["version"] == version


def test_the_package_for_npm_needs_nothing():
    """React is for those who take the hook, and whoever has it has it already."""
    assert not {"dependencies", "devDependencies", "optionalDependencies", "scripts"} & PACKAGE.keys()
    assert PACKAGE["peerDependenciesMeta"] == {name: {"optional": True} for name in PACKAGE["peerDependencies"]}


def test_only_what_acts_when_it_is_imported_is_kept_by_bundlers_that_do_not_see_it_used():
    """The element defines itself; a style sheet has no names."""
    assert PACKAGE["sideEffects"] == ["./live-channel.js", "./live.css"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The package as npm would upload it, unpacked where a project has it; and the project."""
    npm = require_program("npm")
    require_program("node")
    project = tmp_path_factory.mktemp("project")
    # No script of ours or of npm's is run, and nothing is written beside the files.
    output = run(npm, "pack", "--json", "--ignore-scripts", "--pack-destination", project, STATIC, cwd=project)
    archive = project / f"{PACKAGE['name']}-{PACKAGE['version']}.tgz"
    assert archive.is_file(), output
    with tarfile.open(archive) as files:
        files.extractall(project, filter="data")
    (project / "node_modules").mkdir()
    (project / "package").rename(project / "node_modules" / PACKAGE["name"])
    (project / "package.json").write_text('{"type": "module"}')
    return project


def leaves(exports: Any) -> set[str]:
    """The files that a package's `exports` name."""
    if isinstance(exports, str):
        return {exports}
    return set().union(*map(leaves, exports.values()))


def test_the_package_for_npm_carries_what_it_names_and_nothing_else(packed):
    """Modules, their types, one style sheet; no page of ours."""
    folder = packed / "node_modules" / PACKAGE["name"]
    carried = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert carried == {*PACKAGE["files"], "LICENSE", "README.md", "package.json"}
    assert {name.removeprefix("./") for name in leaves(PACKAGE["exports"])} <= carried
    for name in carried:
        if name.endswith(".js"):
            assert {f"./{name[:-3]}.d.ts", f"./{name}"} <= leaves(PACKAGE["exports"]), name
            assert all(target == "react" or target.removeprefix("./") in carried for target in imports(folder / name))
    assert not list(STATIC.glob("*.tgz"))


def test_a_project_imports_the_package_by_its_name(packed):
    """In Node, where a server may render a page; the element is for browsers, and only found."""
    require_that((ROOT / "node_modules/react").is_dir(), "node_modules", "node_modules has no react")
    react = packed / "node_modules" / "react"
    react.unlink(missing_ok=True)
    react.symlink_to(ROOT / "node_modules" / "react")
    (packed / "index.js").write_text(
        """
        import { createRequire } from "node:module";
        import { createParser, openStream } from "django-live-events";
        import { useEventStream } from "django-live-events/react";

        createParser(({ data }) => console.log(data))(new TextEncoder().encode("data: it works\\n\\n"));
        openStream("http://127.0.0.1:9/").close();
        console.log(typeof useEventStream);
        const { resolve } = createRequire(import.meta.url);
        console.log(resolve("django-live-events/live-channel").endsWith("live-channel.js"));
        console.log(resolve("django-live-events/live.css").endsWith("live.css"));
        """
    )
    output = run(require_program("node"), "index.js", cwd=packed)
    assert output.split("\n") == ["it works", "function", "true", "true", ""]


def test_a_project_in_typescript_finds_the_types(packed):
    """The file that `make types` reads beside the sources is read beside the package, as Node finds it."""
    types = ROOT / "node_modules" / "@types"
    compiler = ROOT / "node_modules" / "typescript" / "bin" / "tsc"
    require_that(compiler.is_file() and (types / "react").is_dir(), "node_modules", "node_modules has no typescript")
    for name in ("@types", "csstype"):
        link = packed / "node_modules" / name
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / "node_modules" / name)
    shutil.copy(ROOT / "tests" / "js" / "public-api.ts", packed / "index.ts")
    options = ["--strict", "--noEmit", "--target", "es2022", "--lib", "es2023,dom,dom.iterable"]
    found = ["--module", "nodenext", "--types", "", "--traceResolution"]
    output = run(require_program("node"), compiler, *options, *found, "index.ts", cwd=packed)
    # Its own types, and not the checkout's.
    for name in ("live-events", "live-channel", "react"):
        assert re.search(rf"successfully resolved to '[^']*node_modules/django-live-events/{name}\.d\.ts'", output)
