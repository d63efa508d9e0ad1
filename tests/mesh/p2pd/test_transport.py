"""Real daemons on loopback: streams, links, rendezvous, death, and what strangers may send."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import psutil
import pytest

from gennode.errors import NetworkError, RemoteError, UsageError
from gennode.mesh.links.outgoing import PROTOCOL
from gennode.mesh.listening import socket_folder
from gennode.mesh.p2pd import p2pd_pb2 as pb
from gennode.mesh.p2pd.daemon import MAX_ADDRESS_SPACE_BYTES, MAX_OPEN_FILES, find_binary, write_key
from gennode.mesh.p2pd.roles import Role
from gennode.mesh.p2pd.stream import pack, unpack
from gennode.mesh.p2pd.transport import MAX_DEATHS, P2pdTransport
from gennode.wire.signing import Key
from tests.mesh.ends import Diary, Raw, ping, take

WAIT_S = 10.0


def key(number: int) -> Key:
    return Key(bytes([number]) * 32)


@asynccontextmanager
async def transports(count: int) -> AsyncIterator[list[P2pdTransport]]:
    starts = (P2pdTransport.start(key(number)) for number in range(count))
    started = await asyncio.gather(*starts)
    try:
        yield list(started)
    finally:
        await asyncio.gather(*(transport.close() for transport in started))


def daemon_processes(transport: P2pdTransport) -> list[psutil.Process]:
    assert transport._daemon is not None
    return daemon_processes_of(transport.folder)


def daemon_processes_of(folder: Path) -> list[psutil.Process]:
    control = f"-listen=/unix{folder}/control"
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if control in command and "sh" not in command:
            found.append(process)
    return found


async def test_identity_addresses_and_privacy() -> None:
    async with transports(1) as (a,):
        assert a.peer == key(0).peer
        (address,) = a.addresses()
        assert address.startswith("/ip4/127.0.0.1/tcp/")
        assert address.endswith(f"/p2p/{a.peer}")
        folder = a.folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not (folder / "key").exists()
        (process,) = daemon_processes(a)
        assert os.getsid(process.pid) != os.getsid(0)
        if sys.platform == "linux":
            assert process.rlimit(psutil.RLIMIT_AS)[1] == MAX_ADDRESS_SPACE_BYTES
            assert process.rlimit(psutil.RLIMIT_NOFILE)[1] == MAX_OPEN_FILES
        connections = process.net_connections("inet")
        assert {entry.laddr.ip for entry in connections} == {"127.0.0.1"}
        assert "udp" not in {str(entry.type) for entry in connections}
    assert not folder.exists()
    assert not process.is_running()
    with pytest.raises(NetworkError, match="closed"):
        await a.provide(bytes(32))
    await a.close()


async def test_links_carry_small_and_large_frames() -> None:
    async with transports(2) as (first, second), AsyncExitStack() as stack:
        a, b = Diary(first), Diary(second, echo=True)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, second.addresses())
        sizes = [1024, 8192, 1024 * 1024, 0, 8 * 1024 * 1024]
        payloads = [os.urandom(size) for size in sizes]
        for number, payload in enumerate(payloads):
            a.links.send(second.peer, ping(number), payload)
        await a.wait_for(messages=len(sizes))
        assert [payload for _, _, payload in a.got] == payloads
        assert not a.downs
        assert not b.downs


async def test_providers_are_found_among_three() -> None:
    async with transports(3) as (a, b, c):
        assert await c.find_providers(bytes(32), limit=3, timeout_s=5) == []
        await a.connect(b.addresses()[0], timeout_s=5)
        await c.connect(b.addresses()[0], timeout_s=5)
        name = os.urandom(32)
        async with asyncio.timeout(WAIT_S):
            while not await c.find_providers(name, limit=3, timeout_s=5):
                with suppress(NetworkError):  # until they find that the others speak DHT
                    await a.provide(name)
        assert await c.find_providers(name, limit=3, timeout_s=5) == [a.peer]
        with pytest.raises(UsageError):
            await a.provide(b"short")
        await c.accept("/hello", lambda stream: Raw(stream).stream.write(b"hello"))
        found = Raw(await a.open(c.peer, "/hello", timeout_s=5))  # by its id alone
        await found.wait_for(5)


async def test_a_killed_peer_is_in_trouble_at_once_and_given_up_later() -> None:
    async with transports(2) as (first, second), AsyncExitStack() as stack:
        a, b = Diary(first), Diary(second, echo=True)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, second.addresses())
        a.links.send(second.peer, ping(1))
        await a.wait_for(messages=1)
        (process,) = daemon_processes(second)
        now_s = asyncio.get_running_loop().time()
        second._deaths.extend([now_s] * (MAX_DEATHS - 1))  # so that it won't come back
        process.send_signal(signal.SIGKILL)
        await a.wait_for(downs=1)
        assert [(peer, breach) for peer, _, breach in a.downs] == [(second.peer, False)]
        assert a.troubles == [second.peer]
        await b.wait_for(downs=1)


async def kill_daemon(transport: P2pdTransport) -> None:
    """Kill it, and wait until its transport knows."""
    (process,) = daemon_processes(transport)
    process.send_signal(signal.SIGKILL)
    async with asyncio.timeout(WAIT_S):
        while transport._daemon is not None:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


async def test_a_daemon_that_dies_comes_back_as_it_was() -> None:
    async with transports(2) as (a, b):
        await a.accept("/x", take)
        addresses = a.addresses()
        await b.connect(addresses[0], timeout_s=5)
        near = Raw(await b.open(a.peer, "/x", timeout_s=5))
        status = a.folder / "status"
        status.touch()
        await kill_daemon(a)
        await near.wait_for(closed=True)
        assert not await a.refresh()  # whoever needs it next revives it
        assert a.addresses() == addresses
        assert status.exists()
        await a.connect(b.addresses()[0], timeout_s=5)  # b's daemon may hold back for 5 s
        Raw(await b.open(a.peer, "/x", timeout_s=5))


async def test_a_link_goes_on_after_the_opener_s_daemon_died() -> None:
    async with transports(2) as (first, second), AsyncExitStack() as stack:
        a, b = Diary(first), Diary(second)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        a.links.learn(second.peer, second.addresses())
        a.links.send(second.peer, ping(0), b"before")
        await b.wait_for(messages=1)
        await kill_daemon(first)
        a.links.send(second.peer, ping(1), b"after")
        await b.wait_for(messages=2)
        assert [payload for _, _, payload in b.got] == [b"before", b"after"]
        assert not a.downs


async def test_a_daemon_that_is_just_being_revived_does_not_outlive_us() -> None:
    transport = await P2pdTransport.start(key(0))
    await kill_daemon(transport)
    await asyncio.gather(transport.refresh(), transport.close(), return_exceptions=True)
    assert daemon_processes_of(transport.folder) == []


async def test_a_guard_that_is_killed_takes_its_daemon_along_and_both_come_back() -> None:
    async with transports(1) as (a,):
        addresses, status = a.addresses(), a.folder / "status"
        status.touch()
        (guard,) = [
            process
            for process in psutil.process_iter(["cmdline"])
            if str(a.folder) in (process.info["cmdline"] or []) and process.ppid() == os.getpid()
        ]
        guard.kill()
        async with asyncio.timeout(WAIT_S):
            while a._daemon is not None:  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0)
            is_back = False
            while not is_back:
                with suppress(NetworkError):  # the old one may hold the port for a moment
                    await a.refresh()
                    is_back = True
        assert a.addresses() == addresses
        assert status.exists()
        assert len(daemon_processes(a)) == 1


async def test_a_daemon_that_keeps_dying_is_given_up() -> None:
    died: asyncio.Queue[str] = asyncio.Queue()
    a = await P2pdTransport.start(key(0), on_exit=died.put_nowait)
    for _ in range(MAX_DEATHS):
        assert died.empty()
        await a.refresh()
        await kill_daemon(a)
    async with asyncio.timeout(WAIT_S):
        assert f"{MAX_DEATHS} times" in await died.get()
    with pytest.raises(NetworkError, match="died"):
        await a.provide(bytes(32))
    await a.close()
    assert died.empty()


async def test_a_node_goes_on_in_another_role_on_the_same_port() -> None:
    async with transports(2) as (a, b):
        await a.accept("/x", take)
        await b.connect(a.addresses()[0], timeout_s=5)
        near = Raw(await b.open(a.peer, "/x", timeout_s=5))
        assert near.stream.remote == a.addresses()[0].partition("/p2p/")[0]
        assert await b.direct_peers() == {a.peer}
        port = a.port
        await a.become(Role.PRIVATE)
        await near.wait_for(closed=True)
        assert a.role is Role.PRIVATE
        assert a.port == port
        assert a.addresses() == ()  # loopback is worth nothing to others, and there is no relay
        await a.connect(b.addresses()[0], timeout_s=5)
        Raw(await b.open(a.peer, "/x", timeout_s=5))


SURVIVOR = """
import asyncio
from gennode.mesh.p2pd.transport import P2pdTransport
from gennode.wire.signing import Key

async def main():
    transport = await P2pdTransport.start(Key(bytes(32)))
    print(transport._daemon.control, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_the_daemon_dies_with_a_killed_node() -> None:
    node = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SURVIVOR, stdout=asyncio.subprocess.PIPE
    )
    assert node.stdout is not None
    control = (await node.stdout.readline()).decode().strip()
    processes = psutil.Process(node.pid).children(recursive=True)
    assert any("p2pd" in process.name() for process in processes)
    node.kill()
    await node.wait()
    gone, alive = await asyncio.to_thread(psutil.wait_procs, processes, WAIT_S)
    assert not alive
    assert len(gone) == len(processes)
    assert not Path(control).parent.exists()


async def test_garbage_from_a_stranger_drops_only_the_stranger() -> None:
    async with transports(3) as (evil, first, second), AsyncExitStack() as stack:
        a, b = Diary(first), Diary(second, echo=True)
        await stack.enter_async_context(a.links)
        await stack.enter_async_context(b.links)
        await evil.connect(second.addresses()[0], timeout_s=5)
        raw = Raw(await evil.open(second.peer, PROTOCOL, timeout_s=5))
        raw.stream.write(os.urandom(4 * 1024 * 1024))
        await raw.wait_for(closed=True)
        await b.wait_for(downs=1)
        assert b.downs[0][0] == evil.peer
        assert b.downs[0][2]
        a.links.learn(second.peer, second.addresses())
        a.links.send(second.peer, ping(1))
        await a.wait_for(messages=1)


async def test_what_can_t_be_reached_is_named() -> None:
    async with transports(2) as (a, b):
        nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{key(9).peer}"
        wrong_id = b.addresses()[0].replace(b.peer, key(9).peer)
        for address, reason in ((nobody, "refused"), (wrong_id, "mismatch")):
            with pytest.raises(NetworkError, match=reason) as caught:
                await a.connect(address, timeout_s=5)
            assert caught.value.hint
        for text in ("nonsense", "/ip4/127.0.0.1/tcp/1"):
            with pytest.raises(UsageError):
                await a.connect(text, timeout_s=5)
        await a.connect(b.addresses()[0], timeout_s=5)
        with pytest.raises(NetworkError, match="not supported"):
            await a.open(b.peer, "/unknown", timeout_s=5)
        with pytest.raises(RemoteError):
            await a.open(key(9).peer[:-2], "/unknown", timeout_s=5)  # type: ignore[arg-type]


async def test_an_ended_stream_takes_no_more_orders() -> None:
    async with transports(2) as (a, b):
        await b.accept("/x", take)
        await a.connect(b.addresses()[0], timeout_s=5)
        near = Raw(await a.open(b.peer, "/x", timeout_s=5))
        near.stream.close()
        await near.wait_for(closed=True)
        near.stream.write(b"too late")
        near.stream.pause(True)
        near.stream.close()
        near.stream.abort()
        near.stream.abort()
        assert near.stream.unsent_bytes() == 0


async def test_a_port_in_use_is_named() -> None:
    async with transports(1) as (a,):
        port = int(a.addresses()[0].split("/")[4])
        with pytest.raises(NetworkError, match=f"port {port}") as caught:
            await P2pdTransport.start(key(1), port=port)
        assert caught.value.hint
    with pytest.raises(UsageError):
        await P2pdTransport.start(key(1), port=70_000)


async def test_a_wrong_binary_is_reported_in_its_own_words(tmp_path: Path) -> None:
    binary = tmp_path / "p2pd"
    binary.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 3\n")
    binary.chmod(0o700)
    with pytest.raises(NetworkError, match="no such flag"):
        await P2pdTransport.start(key(0), binary=binary)


def test_the_daemon_is_found_without_its_package() -> None:
    assert find_binary().name == "p2pd"
    assert "hivemind" not in sys.modules


def test_the_key_file_is_ours_alone(tmp_path: Path) -> None:
    write_key(tmp_path / "key", key(1))
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert Key.from_libp2p((tmp_path / "key").read_bytes()).peer == key(1).peer


def test_socket_paths_stay_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    folder = socket_folder()
    folder.rmdir()
    assert len(str(folder)) < 90


def test_control_messages_are_bounded() -> None:
    request = pb.Request(type=pb.Request.IDENTIFY)
    buffer = bytearray(pack(request) * 2)
    assert unpack(buffer, pb.Request())
    assert unpack(buffer, pb.Request())
    assert not unpack(buffer, pb.Request())
    for wrong in (b"\xff" * 10, b"\xff\xff\xff\x7f", b"\x02\xff\xff"):
        with pytest.raises(RemoteError):
            unpack(bytearray(wrong), pb.Request())


@pytest.mark.parametrize("turns", range(8))
async def test_a_start_that_is_cancelled_ends_at_once(turns: int) -> None:
    """Python 3.11 waits for ever for a child whose start was cancelled."""
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        starting = group.create_task(P2pdTransport.start(Key(bytes(32))))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
    assert starting.cancelled()
