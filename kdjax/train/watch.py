"""Processes that watch each other: when one goes, the others know at once.

A collective that waits for a process which is gone may wait for very long, and what JAX says when
its heartbeats fail names no way on. Here the first process holds a connection to every other one,
and the operating system closes that whenever a process ends, however it ends.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import jax
import numpy as np
from jax.experimental import multihost_utils

from kdjax.train.processes import is_first, several

_DONE, _FAILED, _GONE = b"d", b"f", b"g"  # What one end says; a number follows the last one.
_CONNECT_SECONDS = 60
_PROBE_SECONDS = 15  # After which a connection is probed, thrice: its host may have vanished.
_HEAR_SECONDS = 1.0  # For a thread to hear of a lost process before what that broke is blamed.
_GRACE_SECONDS = 1.5  # For a process to say itself what went wrong, where it went wrong for all.


@contextmanager
def watch(lost: Callable[[int], None], *, host: str | None = None) -> Iterator[None]:
  """Calls `lost(process)`, from a thread, when another process ends before it leaves this block.

  An error in the block tells the others, and they wait some seconds for one of their own.

  Args:
    lost: takes the number of the process that is gone.
    host: by which the others reach the first process; the name it has itself by default.

  Raises:
    OSError: if they do not reach it.
  """
  if not several():
    yield
    return
  left = threading.Event()

  def tell(gone: int) -> None:
    if not left.is_set():
      lost(gone)

  peers = _connect(host)
  for number, peer in peers.items():
    threading.Thread(target=_listen, args=(number, peer, peers, tell), daemon=True).start()
  word = _FAILED
  try:
    yield
    word = _DONE
  except SystemExit:
    word = _DONE  # As after SIGTERM, on which all agree.
    raise
  except Exception:
    time.sleep(_HEAR_SECONDS)
    raise
  finally:
    left.set()
    for peer in peers.values():
      _say(peer, word)


def _connect(host: str | None) -> dict[int, socket.socket]:
  """Of the first process a connection to every other, of the others one to the first."""
  if is_first():
    with socket.create_server(("", 0)) as server:
      server.settimeout(_CONNECT_SECONDS)
      _broadcast((host or socket.gethostname(), server.getsockname()[1]))
      found = [server.accept()[0] for _ in range(jax.process_count() - 1)]
    peers = {_number(peer): peer for peer in found}
  else:
    address = _broadcast(("", 0))
    try:
      peer = socket.create_connection(address, timeout=_CONNECT_SECONDS)
    except OSError as error:
      raise OSError(
        f"process {jax.process_index()} cannot reach the first one at {address[0]}, port "
        f"{address[1]} ({error}); name a host in --coordinator_address that all reach, at any port"
      ) from error
    peer.sendall(jax.process_index().to_bytes(4, "big"))
    peers = {0: peer}
  for peer in peers.values():
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("IDLE", _PROBE_SECONDS), ("INTVL", _PROBE_SECONDS), ("CNT", 3)):
      if hasattr(socket, f"TCP_KEEP{option}"):
        peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{option}"), value)
  return peers


def _broadcast(address: tuple[str, int]) -> tuple[str, int]:
  """The address that the first process gives, on all of them."""
  text = np.frombuffer(json.dumps(address).encode().ljust(512), np.uint8)
  host, port = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(text)).tobytes())
  return host, port


def _listen(
  number: int,
  peer: socket.socket,
  peers: dict[int, socket.socket],
  lost: Callable[[int], None],
) -> None:
  """Waits until a connection ends, and passes on why."""
  word = _read(peer, 1)
  if word == _DONE:
    return
  gone = _number(peer) if word == _GONE else number
  if word == _FAILED:
    time.sleep(_GRACE_SECONDS)
  if is_first():
    for other in peers.keys() - {gone}:
      _say(peers[other], _GONE + gone.to_bytes(4, "big"))
  lost(gone)


def _read(peer: socket.socket, size: int) -> bytes:
  """Nothing where the other end is gone."""
  try:
    return peer.recv(size, socket.MSG_WAITALL)
  except OSError:
    return b""


def _number(peer: socket.socket) -> int:
  return int.from_bytes(_read(peer, 4), "big")


def _say(peer: socket.socket, word: bytes) -> None:
  with suppress(OSError):  # Where it is gone, whoever listens to it knows.
    peer.sendall(word)
