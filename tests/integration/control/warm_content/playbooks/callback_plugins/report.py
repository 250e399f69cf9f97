"""Writes down all that a playbook's main process can see of how it was started."""

from __future__ import annotations

import atexit
import gc
import json
import locale
import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

from ansible import constants, context
from ansible.parsing.vault import VaultSecretsContext
from ansible.playbook.block import Block
from ansible.playbook.play import Play
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.plugins import loader
from ansible.plugins.callback import CallbackBase
from ansible.utils import color, display
from ansible.utils import vars as ansible_vars
from ansible.utils.collection_loader import AnsibleCollectionConfig


class CallbackModule(CallbackBase):
    """Reports at the start of the playbook."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "report"

    def v2_playbook_on_start(self, playbook) -> None:
        run = os.environ["BAZARUTO_RUN_ID"]
        path = Path(os.environ["BAZARUTO_HOME"]) / f"report-{run}.json"
        path.write_text(json.dumps(report() | outside(), default=repr, indent=1), encoding="utf-8")


def report():
    shown = display.Display()
    return {
        "constants": {name: plain(value) for name, value in vars(constants).items() if name.isupper()},
        "config": {name: plain(value) for name, value in vars(constants.config).items() if name != "_base_defs"},
        "config_file": constants.CONFIG_FILE,
        "config_warnings": [sorted(constants.config.WARNINGS), list(constants.config.DEPRECATED)],
        "same_config": [module for module in sorted(sys.modules) if other_config(sys.modules[module])],
        "loaders": {
            name: paths(value) for name, value in vars(loader).items() if isinstance(value, loader.PluginLoader)
        },
        "attributes": {kind.__name__: attributes(kind) for kind in (Play, Block, Task, PlayContext)},
        "display": {name: plain(value) for name, value in vars(shown).items() if name != "_lock"},
        "colour": color.ANSIBLE_COLOR,
        "log": repr(display.logger),
        "arguments": dict(context.CLIARGS),
        "vault": plain(getattr(VaultSecretsContext.current(optional=True), "secrets", None)),
        "collections": [AnsibleCollectionConfig.collection_paths, AnsibleCollectionConfig.playbook_paths],
        "python": [sys.argv, sys.orig_argv, sys.executable, sys.path, sys.flags, sys.prefix, sys.warnoptions],
        "filters": plain(warnings.filters),
        "importers": [plain(finder) for finder in sys.meta_path],
        "environ": dict(os.environ),
        "exit_functions": atexit._ncallbacks(),
        "collector": [gc.isenabled(), gc.get_threshold()],
        "threads": [thread.name for thread in threading.enumerate()],
        "process": [
            multiprocessing.current_process().name,
            multiprocessing.parent_process(),
            multiprocessing.active_children(),
        ],
        "logging": [plain(logging.root.handlers), logging.root.level, logging.root.manager.disable],
        "temporary": tempfile.gettempdir(),
        "time": [time.tzname, time.timezone],
        "locale": [locale.getlocale(), locale.getlocale(locale.LC_TIME), sys.getfilesystemencoding()],
        "streams": [stream_state(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "originals": [sys.stdin is sys.__stdin__, sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__],
        "modules": sorted(sys.modules),
    }


def outside():
    """What others see, or the kernel keeps."""
    mask = os.umask(0o077)
    os.umask(mask)
    own = 3 << 31  # signals 32 and 33, which glibc catches in a process that ever had a second thread
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    descriptors = {
        place.name: str(place.readlink()) for place in Path("/proc/self/fd").iterdir() if is_open(int(place.name))
    }
    return {
        "descriptors": descriptors,
        "signals": {number.name: repr(signal.getsignal(number)) for number in signal.Signals},
        "kernel": {name: status[name] for name in ("SigBlk", "SigIgn", "Threads", "NoNewPrivs", "Seccomp")},
        "caught": int(status["SigCgt"], 16) & ~own,
        "limits": {
            name: resource.getrlimit(value) for name, value in vars(resource).items() if name.startswith("RLIMIT_")
        },
        "umask": mask,
        "directory": str(Path.cwd()),
        "session": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid(), os.tcgetpgrp(0) == os.getpid()],
        "nice": os.nice(0),
        "terminal": [os.get_terminal_size(0), os.ttyname(0)],
        "command": [word for word in Path("/proc/self/cmdline").read_bytes().decode().split("\0") if word],
        "comm": Path("/proc/self/comm").read_text(),
        "chance": ansible_vars.random_int,
    }


def is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def stream_state(stream):
    return [
        stream.name,
        stream.mode,
        stream.encoding,
        stream.errors,
        stream.line_buffering,
        stream.isatty(),
        stream.closed,
    ]


def paths(plugins):
    return [plugins.config, plugins._get_paths(), plugins._extra_dirs, plugins.aliases]


def attributes(kind):
    return {name: plain(field.default) for name, field in kind.fattributes.items()}


def other_config(module):
    """Whether a module kept a configuration that is not the one in use."""
    kept = vars(module).get("config") if module.__name__.startswith("ansible.") else None
    return type(kept).__name__ == "ConfigManager" and kept is not constants.config


def plain(value):
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    if isinstance(value, (str, int, float, bool, type(None), list, tuple, dict, set, frozenset)):
        return repr(sorted(map(repr, value))) if isinstance(value, (set, frozenset)) else repr(value)
    return type(value).__name__
