"""Plays a playbook in a fork of a process that has Ansible imported already, as if it had been executed.

Importing Ansible takes longer than a small playbook. So the launcher imports it once (`import_ansible`), and what is
forked from it makes itself look like the new process that it replaces. What Ansible derived from its settings while it
was imported would be wrong for a run with other settings. Therefore every setting and variable that was read then is
noted; a run reads its own settings again, and where one of those noted has another value, and is not among the few
that are derived anew here, the playbook is executed after all. So is it after any other trouble before it begins.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import functools
import gc
import importlib
import logging
import multiprocessing
import multiprocessing.util
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

RUN_VARIABLE = "BAZARUTO_RUN_ID"
INTERPRETER_PREFIXES = ("PYTHON", "LC_", "LANG", "LD_")  # of variables that act before any module is imported
# Settings of Display and of the colours, both of which are made anew for each playbook.
MADE_ANEW = frozenset(
    {
        "ANSIBLE_NOCOLOR",
        "ANSIBLE_FORCE_COLOR",
        "ANSIBLE_NOCOWS",
        "ANSIBLE_COW_PATH",
        "ANSIBLE_COW_SELECTION",
        "LOG_VERBOSITY",
    }
)
FIRST_OWN_DESCRIPTOR = 3


class MustExecuteError(Exception):
    """This playbook cannot be played in a fork."""


@dataclasses.dataclass(frozen=True)
class Imported:
    """What Ansible saw when it was imported: right for each run that would have seen the same."""

    settings: dict[str, Any]
    variables: dict[str, str | None]
    loaders: list[tuple[Any, str]]  # plugin loaders, and the setting that holds each one's paths
    definitions: Any  # of all settings: parsed once, since that takes half of the time to read the settings again
    encodings: list[tuple[str, str | None]]  # of the standard streams, with what they do about errors


_imported: Imported | None = None


class _Constants(types.ModuleType):
    """`ansible.constants` while what is read from it is noted."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name.isupper():
            _read_settings[name] = value
        return value


class _Variables(os._Environ[str]):
    """`os.environ` while what is read from it is noted, but for Ansible's settings: they are noted above."""

    def __getitem__(self, key: str) -> str:
        frame = sys._getframe(1)
        while frame.f_back and frame.f_globals.get("__name__") in ("os", "collections.abc", "posixpath"):
            frame = frame.f_back
        if frame.f_globals.get("__name__") != "ansible.config.manager":
            _read_variables[key] = None
            _read_variables[key] = super().__getitem__(key)
        return super().__getitem__(key)


_read_settings: dict[str, Any] = {}
_read_variables: dict[str, str | None] = {}


def import_ansible() -> None:
    """Import what `ansible-playbook` and ansible-runner import, and note what that read. For the launcher only."""
    global _imported  # noqa: PLW0603 - it belongs to the process, as the imported modules do
    streams = (sys.stdin, sys.stdout, sys.stderr)
    encodings = [(stream.encoding, stream.errors) for stream in streams]
    _read_variables.update({name: os.environ[name] for name in os.environ if name.startswith(INTERPRETER_PREFIXES)})
    plain = os.environ.__class__
    os.environ.__class__ = _Variables
    try:
        importlib.import_module("ansible._internal").setup()  # in the order of ansible.cli
        constants: Any = importlib.import_module("ansible.constants")
        constants.DEFAULT_LOG_PATH = None  # else its file would be opened here; a run that has one is executed
        constants.__class__ = _Constants
        constants.config.get_config_value = functools.partial(_noted, constants.config.get_config_value)
        importlib.import_module("ansible.cli.playbook")
        importlib.import_module("ansible_runner")
    finally:
        os.environ.__class__ = plain
    del constants.config.get_config_value
    constants.__class__ = types.ModuleType
    definitions = constants.config._read_config_yaml_file(Path(sys.modules["ansible.config"].__path__[0]) / "base.yml")
    shutil.rmtree(constants.DEFAULT_LOCAL_TMP, ignore_errors=True)  # of no use here; every playbook makes its own
    _imported = Imported(dict(_read_settings), dict(_read_variables), _loaders(), definitions, encodings)


def _noted(read: Callable[..., Any], name: str, *rest: Any, **more: Any) -> Any:
    value = read(name, *rest, **more)
    _read_settings[name] = value
    return value


def _loaders() -> list[tuple[Any, str]]:
    """Every plugin loader with the name of the setting that it was made with; each keeps the very list."""
    module = importlib.import_module("ansible.plugins.loader")
    loaders = [value for value in vars(module).values() if isinstance(value, module.PluginLoader)]
    return [(loader, name) for loader in loaders for name, value in _read_settings.items() if value is loader.config]


def is_warm() -> bool:
    """Whether this process was forked from one that has Ansible imported."""
    return _imported is not None


@contextlib.contextmanager
def playbook_in_fork() -> Iterator[None]:
    """Within it, ansible-runner forks its playbook where that is possible."""
    if _imported is None:
        yield
        return
    spawn = importlib.import_module("ansible_runner.runner").pexpect.spawn
    executing = spawn._spawnpty
    spawn._spawnpty = functools.partialmethod(_spawn, executing, _imported)
    try:
        yield
    finally:
        spawn._spawnpty = executing


def _spawn(self: Any, executing: Callable[..., Any], imported: Imported, words: list[bytes], **options: Any) -> Any:
    """pexpect's own way to start a child in a terminal, with a child that executes nothing when it can."""
    before: Callable[[], None] = options.pop("preexec_fn")
    sys.stdout.flush()
    sys.stderr.flush()
    told = os.dup(2)

    def begin() -> None:
        before()
        _become([os.fsdecode(word) for word in words], options["env"], imported, told)

    try:
        return executing(self, words, preexec_fn=begin, pass_fds=(told,), **options)
    finally:
        os.close(told)


def _become(words: list[str], environment: Mapping[str, str], imported: Imported, told: int) -> None:
    """Be the playbook, and never return; returning means that it is to be executed."""
    gc.freeze()  # what belongs to the supervisor is never collected here: its files are closed, their numbers reused
    try:
        atexit._clear()  # what the supervisor wants done at its end is not this process' business
        _make_new(words, environment, imported)
    except Exception as error:  # noqa: BLE001 - whatever it is, executing the playbook is right
        atexit._run_exitfuncs()
        reason = str(error) if isinstance(error, MustExecuteError) else "".join(traceback.format_exception(error))
        os.write(told, f"the playbook is executed, not forked: {reason}\n".encode())
        return
    os.closerange(FIRST_OWN_DESCRIPTOR, os.sysconf("SC_OPEN_MAX"))  # the last of them tells ptyprocess to go on
    os._exit(_play(words))


def _make_new(words: list[str], environment: Mapping[str, str], imported: Imported) -> None:
    """Make everything that a new process would find otherwise. Raises MustExecuteError."""
    interpreter = _interpreter_of(words[0])
    set_environment(environment)
    _check_variables(imported)
    atexit.register(vars(multiprocessing.util)["_exit_function"])
    atexit.register(logging.shutdown)
    reset_signals(keep_ignored=True)
    open_streams(imported.encodings)
    sys.argv = words
    sys.orig_argv = [interpreter, *words]
    sys.executable = interpreter
    sys.path[0] = str(Path(words[0]).parent)
    sys.modules["__main__"] = types.ModuleType("__main__")
    logging.root.handlers.clear()
    multiprocessing.current_process().authkey = secrets.token_bytes(32)
    _read_settings_again(imported)
    _derive_anew(imported)
    show_as([interpreter, *words], environment.get(RUN_VARIABLE, ""), Path(words[0]).name)


def _interpreter_of(script: str) -> str:
    """The Python that would execute `ansible-playbook`: only if it is this very one, a fork is the same."""
    own = Path(sys.executable)
    with Path(script).open("rb") as file:
        first = os.fsdecode(file.readline().strip())
    interpreter = Path(first.removeprefix("#!"))
    if Path(script).name != "ansible-playbook" or interpreter.parent != own.parent or not interpreter.samefile(own):
        raise MustExecuteError(f"{script} is no ansible-playbook of {own}")
    return str(interpreter)


def _check_variables(imported: Imported) -> None:
    now = {name: os.environ[name] for name in os.environ if name.startswith(INTERPRETER_PREFIXES)}
    for name in {*imported.variables, *now}:
        if os.environ.get(name) != imported.variables.get(name):
            raise MustExecuteError(f"Ansible was imported with another {name}")


def _read_settings_again(imported: Imported) -> None:
    """What `ansible.constants` does at its end, with this process' environment and ansible.cfg."""
    from ansible import constants

    config = constants.config
    type(config).WARNINGS.clear()
    type(config).DEPRECATED.clear()
    config._read_config_yaml_file = lambda _path: imported.definitions
    config.__init__()  # the same object: other modules have it by name
    del config._read_config_yaml_file
    for name in config.get_configuration_definitions():
        constants.set_constant(name, config.get_config_value(name, variables=vars(constants)))
    derived = MADE_ANEW.union(name for _, name in imported.loaders)
    for name, value in imported.settings.items():
        if name not in derived and getattr(constants, name) != value:
            raise MustExecuteError(f"Ansible was imported with another {name}")


def _derive_anew(imported: Imported) -> None:
    """What Ansible's modules made of the settings, or of chance, while they were imported."""
    from ansible import constants
    from ansible.utils import color, display
    from ansible.utils import vars as ansible_vars

    for loader, name in imported.loaders:
        paths = getattr(constants, name)
        loader.config = paths if paths is None or isinstance(paths, list) else [paths]
    importlib.reload(color)
    shown = display.Display()
    vars(shown).clear()
    shown.__init__()
    ansible_vars.random_int = f"{secrets.randbelow(ansible_vars._MAXSIZE):08x}"[:8]


def _play(words: list[str]) -> int:
    """`ansible-playbook` and the end of its interpreter; returns its exit code."""
    from ansible.cli.playbook import PlaybookCLI

    code = 0
    try:
        PlaybookCLI.cli_executor(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does with what nobody took
        traceback.print_exc()
        code = 1
    finish()
    return code & 0xFF


def finish() -> None:
    """What an interpreter does at its end, since a forked process must leave by os._exit."""
    vars(threading)["_shutdown"]()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone, or somebody closed the stream
            stream.flush()


def set_environment(environment: Mapping[str, str]) -> None:
    """Replace this process' environment, and what was derived from it."""
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    tempfile.tempdir = None


def reset_signals(*, keep_ignored: bool) -> None:
    """Dispositions as a new Python has them; what is ignored stays so across exec, and here when that is wanted."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        now = signal.getsignal(number)
        if now == signal.SIG_IGN and keep_ignored:
            continue
        if now not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def open_streams(encodings: Sequence[tuple[str, str | None]] | None = None) -> None:
    """New standard streams on descriptors 0 to 2: no lock that another thread held, nothing of what was changed."""
    if encodings is None:
        encodings = _imported.encodings if _imported else [("utf-8", None)] * 3
    names = ("stdin", "stdout", "stderr")
    for descriptor, (name, encoding) in enumerate(zip(names, encodings, strict=True)):
        stream = _stream(descriptor, "w" if descriptor else "r", *encoding)
        stream.buffer.raw.name = f"<{name}>"
        vars(sys).update({name: stream, f"__{name}__": stream})
    vars(sys)["stderr"].reconfigure(line_buffering=True)


def _stream(descriptor: int, mode: str, encoding: str, errors: str | None) -> Any:
    stream: IO[str] = open(descriptor, mode, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115 - for the process' life
    return stream


def show_as(words: Sequence[str], run: str, name: str | None = None) -> bool:
    """Have the kernel show these words and this run's id for this process; False, with nothing done, without room.

    /proc/PID/cmdline and environ show the memory that exec filled, also in forked processes. The launcher was started
    with room in it; the words are written there, padded with NULs.
    """
    numbers = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    words_from, words_to, variables_from, variables_to = map(int, numbers[45:49])
    room = words_to - words_from
    text = b"".join(os.fsencode(word) + b"\0" for word in words)
    variables = b"\0" + ctypes.string_at(variables_from, variables_to - variables_from)
    found = variables.find(f"\0{RUN_VARIABLE}=".encode())
    value_at = found + len(RUN_VARIABLE) + 2
    if len(text) > room or found < 0 or len(run.encode()) != variables.find(b"\0", value_at) - value_at:
        return False
    ctypes.memmove(words_from, text.ljust(room, b"\0"), room)
    ctypes.memmove(variables_from + value_at - 1, run.encode(), len(run.encode()))
    Path("/proc/self/comm").write_text((name or Path(words[0]).name)[:15], encoding="utf-8")
    return True
