"""An Envoy that crashes dumps the requests under way: keys, prompts and answers. None of it reaches a disk."""

from __future__ import annotations

import signal

import orjson
import pytest

from extproc.envoy_config.files import write_json
from tests.e2e.conftest import GatewayFactory
from tests.e2e.test_credentials import admin_page
from tests.support.files import files_with
from tests.support.gateway import PLANTED_KEYS, Gateway, two_providers
from tests.support.wall import Wall, answer, ok

COMPLETION = "planted-completion-words"
CRASH = """
local ffi = require("ffi")
ffi.cdef("int raise(int number);")
function envoy_on_response(handle)
  local number = handle:headers():get("x-signal")
  if number then ffi.C.raise(tonumber(number)) end
end
"""


@pytest.mark.noisy_logs
def test_what_envoy_dumps_when_it_crashes_is_in_no_file_and_the_backtrace_is_in_its_log(
    gateway_factory: GatewayFactory, primary: Wall, fallback: Wall
) -> None:
    """Twice, as the Envoy that is started again may crash too."""
    gateway = gateway_factory(two_providers(primary, fallback))
    _make_envoy_crash_on_demand(gateway)

    for number, name in ((signal.SIGSEGV, "Segmentation fault"), (signal.SIGABRT, "Aborted")):
        crash = answer(200, {"choices": [{"message": {"content": COMPLETION}}]}, {"x-signal": f"{number:d}"})
        primary.script([crash, ok()])
        assert "clean" != gateway.chat().ended
        gateway.wait_until(lambda: _serves(gateway), "the next Envoy")
        _, caught, backtrace = (gateway.data_dir / "logs" / "envoy.log").read_text().partition(f"Caught {name}")
        assert caught
        assert "#0: " in backtrace

    secrets = (PLANTED_KEYS["PRIMARY_KEY"], COMPLETION)
    found = {path.parent for secret in secrets for path in files_with(gateway.data_dir, secret)}
    assert {gateway.data_dir / "envoy" / "sds"} == found
    assert [] == [path for path in gateway.output_files() for secret in secrets if secret in path.read_text()]


def _serves(gateway: Gateway) -> bool:
    try:
        return gateway.chat().status == 200
    except OSError:
        return False


def _make_envoy_crash_on_demand(gateway: Gateway) -> None:
    """Give the running Envoy a filter that raises the signal that an answer names.

    It is the first to see an answer, which is in the buffer of the connection still.
    """
    path = gateway.data_dir / "envoy" / "lds.json"
    document = orjson.loads(path.read_bytes())
    (front,) = [one for one in document["resources"] if one["name"] == "gateway"]
    filters = front["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    kind = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
    filters.insert(
        -1, {"name": "crash", "typed_config": {"@type": kind, "default_source_code": {"inline_string": CRASH}}}
    )
    write_json(path, document | {"version_info": "crash"})
    socket = gateway.data_dir / "run" / "envoy-admin.sock"
    gateway.wait_until(lambda: b'"crash"' in admin_page(socket, "/stats?filter=lds.version_text"), "the filter")
