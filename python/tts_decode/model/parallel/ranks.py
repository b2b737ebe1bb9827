"""The ranks that hold one model: their communication, and the errors when one is lost."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from tts_kernels.checks import instance, real, shown

from ...errors import MeshError

_DYING_SECONDS = 2.0  # between the loss of a connection and the end of its process, on a busy machine
_TEXT = 512  # bytes of a text exchanged by ranks


class _Process(NamedTuple):
    """Where a rank runs. state: of /proc, to see whether it still does."""

    host: str
    pid: int

    def gone(self) -> bool:
        """Whether it is known to have ended; only for this machine."""
        if self.host != socket.gethostname():
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return Path("/proc/self").exists()
        return state in ("Z", "X")  # ended but not yet reaped


class Ranks:
    """Rank 0 leads, the others follow.

    Messages are sent over gloo, results of the forward by the mesh's own backend.

    Args:
        mesh: of one dimension. All of its ranks make a `Ranks` of it, in the same order.
        timeout: seconds that a rank waits for the others before it gives up.

    Attributes:
        rank, size: this rank's number in the mesh, and the number of ranks.
        device: of what the mesh's backend sends.
        sent: bytes that this rank contributed to sums and gathers of the forward so far, as a ring sends
            them.

    Raises:
        TypeError, ValueError: it is no mesh, or not of one dimension.
        MeshError: the others do not arrive in time.
    """

    def __init__(self, mesh: DeviceMesh, timeout: float = 60.0) -> None:
        instance("device_mesh", mesh, DeviceMesh, "make it with torch.distributed.init_device_mesh")
        if mesh.ndim != 1:
            raise ValueError(
                f"device_mesh: got {mesh.ndim} dimensions of {list(mesh.shape)}, expected one: pass the "
                "dimension that a model is split over, as mesh['tp']"
            )
        if not 0 < real("mesh_timeout", timeout) < 1e6:
            raise ValueError(f"mesh_timeout: got {shown(timeout)}, expected seconds above 0 and below 10**6")
        self.mesh, self.timeout = mesh, float(timeout)
        self.rank, self.size = mesh.get_local_rank(), mesh.size()
        self.sent = 0
        members: list[int] = mesh.mesh.flatten().tolist()
        self._leader = members[0]
        on_cpu = mesh.device_type == "cpu"
        self.device = torch.device("cpu" if on_cpu else f"cuda:{torch.cuda.current_device()}")
        self._processes: list[_Process] = []
        with self._told("came together"):
            self._control = self._group(members, "gloo")
            self._data = self._control if on_cpu else self._group(members, "nccl")
        places = self.gather_texts(f"{socket.gethostname()} {os.getpid()}")
        split = [place.rsplit(" ", 1) for place in places]
        self._processes = [_Process(host, int(pid)) for host, pid in split]

    def _group(self, members: list[int], backend: str) -> Any:
        limit = timedelta(seconds=self.timeout)
        return dist.new_group(members, timeout=limit, backend=backend, use_local_synchronization=True)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def on_this_host(self) -> int:
        """Number of ranks that share this machine."""
        own = self._processes[self.rank].host
        return sum(process.host == own for process in self._processes)

    # -- what a forward computes

    def sum(self, part: Tensor) -> Tensor:
        """Returns the sum of float [T, n] over all ranks, with the same bits on each; in place if possible.

        Ranks are summed in order, whatever T is, so that a row's bits do not depend on the others. NCCL has
        its own order.
        """
        self.sent += 2 * (self.size - 1) * part.nbytes // self.size
        with self._told("summed the parts of a layer"):
            if self.size == 2 or self.device.type != "cpu":
                dist.all_reduce(part, group=self._data)  # a + b is b + a
                return part
            return self._sum_in_order(part)

    def _sum_in_order(self, part: Tensor) -> Tensor:
        """Each rank sums a piece and sends it to all: the bytes of a ring."""
        count = part.numel()
        each = -(-count // self.size)
        flat = part.new_zeros(each * self.size)
        flat[:count] = part.flatten()
        pieces = torch.empty_like(flat)
        dist.all_to_all_single(pieces, flat, group=self._data)
        own, *others = pieces.view(self.size, each)
        for other in others:
            own += other
        made = list(flat.view(self.size, each))
        dist.all_gather(made, own, group=self._data)
        return flat[:count].view(part.shape)

    def gather_columns(self, part: Tensor, widths: Sequence[int]) -> Tensor | None:
        """Gathers [R, widths[rank]] of all ranks to [R, sum of widths] on the leader; None on the others."""
        most = max(widths)
        sent = part.new_zeros(len(part), most)
        sent[:, : widths[self.rank]] = part[:, : widths[self.rank]]
        made = [torch.empty_like(sent) for _ in widths] if self.leads else None
        self.sent += 0 if self.leads else sent.nbytes
        with self._told("gathered the logits"):
            dist.gather(sent, made, dst=self._leader, group=self._data)
        if made is None:
            return None
        return torch.cat([one[:, :width] for one, width in zip(made, widths, strict=True)], 1)

    # -- what ranks tell each other, on the CPU

    def share(self, tensor: Tensor, while_: str = "waited for the leader") -> Tensor:
        """Fills a tensor with the leader's values."""
        with self._told(while_):
            dist.broadcast(tensor, src=self._leader, group=self._control)
        return tensor

    def gather_numbers(self, numbers: Sequence[int], while_: str = "compared numbers") -> list[list[int]]:
        """Returns the numbers of each rank; all have the same count of int64."""
        own = torch.tensor(numbers, dtype=torch.int64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._told(while_):
            dist.all_gather(found, own, group=self._control)
        return [row.tolist() for row in found]

    def gather_texts(self, text: str) -> list[str]:
        """Returns one text per rank, of which the first 512 bytes are sent."""
        encoded = text.encode()[:_TEXT].ljust(_TEXT, b"\0")
        own = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self._told("compared what they are"):
            dist.all_gather(found, own, group=self._control)
        return [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in found]

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Ends all ranks with the error that the block raises on one, naming its rank and message."""
        own: Exception | None = None
        try:
            yield
        except MeshError:
            raise  # the ranks lost each other: nobody is listening
        except Exception as error:
            own = error
        told = self.gather_texts("" if own is None else f"{type(own).__name__}: {own}")
        if own is not None:
            raise own
        for rank, message in enumerate(told):
            if message:
                raise MeshError(f"{what}: rank {rank} of {self.size} ended with {message}")

    @contextmanager
    def _told(self, while_: str) -> Iterator[None]:
        """Turns errors of the backends into one that says which rank is lost."""
        try:
            yield
        except (RuntimeError, ConnectionError) as error:
            first = str(error).partition("\n")[0]
            raise MeshError(
                f"rank {self.rank} of {self.size}: {self._lost()} while the ranks {while_} ({first:.200}); "
                "the model cannot go on without it, so this rank ends too: start all of them again"
            ) from error

    def _lost(self) -> str:
        """Says who ended. A killed process closes its connections a moment before it counts as gone."""
        end = time.monotonic() + _DYING_SECONDS
        while not (gone := [rank for rank, process in enumerate(self._processes) if process.gone()]):
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        if gone:
            named = [
                f"rank {n} (process {self._processes[n].pid} on {self._processes[n].host})" for n in gone
            ]
            return f"{' and '.join(named)} ended"
        return f"another rank closed its connection, or was silent for {self.timeout:g} s,"


def bounds(total: int, parts: int, unit: int = 1) -> list[tuple[int, int]]:
    """Returns begin and end of each part of `total`: whole units, equally many in all but the last parts."""
    each = -(-total // (unit * parts)) * unit
    return [(min(total, part * each), min(total, (part + 1) * each)) for part in range(parts)]
