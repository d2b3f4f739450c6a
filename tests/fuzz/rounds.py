"""One round: a batch each way through all stages, invariants checked, now and then the oracles."""

import numpy as np

from forwarder.batch import FRAMES, PACKETS, SEGMENTS, allocate_inbound, allocate_outbound
from forwarder.coalesce import coalesce
from forwarder.counters import Drop
from forwarder.fib.layout import KIND_AT, FibView, Kind
from forwarder.fib.routes import NextHop
from forwarder.inbound import cut, decapsulate
from forwarder.outbound import choose_whole, encapsulate, lay_out, parse, plan, route
from forwarder.tunnel import Tunnel
from forwarder.tunnel_gso import write_headers
from forwarder.udp import GSO_SEGMENTS
from tests.forwarder.fibs import VNI
from tests.forwarder.packets import MAC_A, MAC_B, VTEP_A, VTEP_C, make_node
from tests.forwarder.stages import (
    DROPS,
    LANES,
    MTU,
    Arrived,
    FromTun,
    frame_bytes,
    make_tunnel,
    put_messages,
    put_packets,
)
from tests.fuzz import inputs, invariants
from tests.fuzz.inputs import Random, damage, shorten
from tests.reference import coalescing, decapsulation
from tests.reference.decapsulation import Node
from tests.reference.routes import RouteTable

MESSAGES = 16
ORACLE_EVERY = 25
"""Rounds: the oracles are a hundred times slower than the kernels."""


class Fuzzer:
    """Everything follows from the seed and the round's number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.inputs = self.accepted = self.compared = 0
        self._out, self._in = allocate_outbound(2 * LANES), allocate_inbound()
        self._sender, self._receiver = make_node("A"), make_node("B")
        routes: RouteTable[NextHop] = RouteTable()
        routes.routes.update(self._receiver.writer.routes)
        self._oracle = Node(VNI, MAC_B, routes)
        self._frames = inputs.frames_of(inputs.plain_packets())
        self._streams = [inputs.frames_of(stream) for stream in inputs.streams()]
        self._giants = inputs.frames_of(inputs.giants())
        self._from_tun = inputs.from_tun()
        self._scratch = np.zeros(FRAMES, np.int64)

    def run_round(self, number: int) -> None:
        random = np.random.default_rng([self.seed, number])
        self.run_inbound(random, compare=number % ORACLE_EVERY == 0)
        self.run_outbound(random)

    # ---- inbound --------------------------------------------------------------------------------

    def run_inbound(self, random: Random, compare: bool) -> None:
        batch, view = self._in, self._receiver.view
        tunnel = make_tunnel(mac=MAC_B)
        messages = [self.arrival(random) for _ in range(MESSAGES)]
        put_messages(batch, messages)
        frames = int(cut(batch, MESSAGES))
        expect(invariants.check_cut(batch, MESSAGES, frames))
        starts, lengths = batch.start[:frames].copy(), batch.length[:frames].copy()
        came = [frame_bytes(batch, f) for f in range(frames)] if compare else []
        decapsulate(tunnel, batch, frames, view)
        expect(invariants.check_decapsulated(batch, frames, starts, lengths))
        self.inputs += frames
        self.accepted += int((batch.reason[:frames] == Drop.NONE).sum())
        kept = self.compare_decapsulated(messages, came) if compare else []
        chains = int(coalesce(batch, frames, tunnel))
        expect(invariants.check_chains(batch, frames, chains, self._scratch))
        if compare:
            self.compare_chains(kept, chains)
        expect(invariants.check_vnet_headers(batch, chains, MTU))

    def arrival(self, random: Random) -> Arrived:
        """A message as a peer, or nobody's peer, may send it."""
        kind = random.integers(8)
        gro_bytes = 0
        if kind < 3:
            data = bytearray(self._frames[int(random.integers(len(self._frames)))])
        elif kind < 7:
            stream = self._streams[int(random.integers(len(self._streams)))]
            data, gro_bytes = bytearray(b"".join(stream)), len(stream[0])
        else:
            data = bytearray(self._giants[int(random.integers(len(self._giants)))])
            gro_bytes = int(random.integers(3)) * 700
        whole_frames = gro_bytes or len(data)
        if random.random() < 0.5:
            at = whole_frames * int(random.integers(max(len(data) // whole_frames, 1)))
            piece = data[at : at + whole_frames]
            damage(random, piece, 90)
            data[at : at + whole_frames] = piece
        if random.random() < 0.1:
            shorten(random, data)
        if random.random() < 0.05:
            gro_bytes = int(random.integers(512, 2000))  # at most 128 to a message, as the kernel
        sender = VTEP_A.address if random.random() < 0.95 else VTEP_C.address
        tos = int(random.integers(256)) if random.random() < 0.3 else 0
        return Arrived(bytes(data), sender, gro_bytes, tos)

    def compare_decapsulated(self, messages: list[Arrived], came: list[bytes]) -> list[int]:
        """Holds each verdict against the oracle's; returns the frames that were accepted."""
        batch = self._in
        kept = []
        for f, frame in enumerate(came):
            message = messages[int(batch.message[f])]
            ours: Drop | bytes = DROPS[int(batch.reason[f])]
            if ours == Drop.NONE:
                ours = frame_bytes(batch, f)
                kept.append(f)
            verdict = decapsulation.decapsulate(self._oracle, frame, message.sender, message.tos)
            assert ours == verdict, (f, ours, verdict, frame[:100])
            self.compared += 1
        return kept

    def compare_chains(self, kept: list[int], chains: int) -> None:
        batch = self._in
        found = []
        for c in range(chains):
            chain = [int(batch.chain_first[c])]
            while (following := int(batch.next_frame[chain[-1]])) >= 0:
                chain.append(following)
            found.append(chain)
        packets = [frame_bytes(batch, f) for f in kept]
        keys = [int(batch.flow[f]) % 64 for f in kept]
        expected = coalescing.coalesce(packets, keys, MTU)
        assert found == [[kept[i] for i in chain] for chain in expected]

    # ---- outbound -------------------------------------------------------------------------------

    def run_outbound(self, random: Random) -> None:
        batch, view = self._out, self._sender.view
        tunnel = make_tunnel(mac=MAC_A, udp_gso=random.random() < 0.9)
        tunnel.tunnel_gso[:] = random.integers(2, size=2)
        packets = [self.departure(random) for _ in range(int(random.integers(1, 24)))]
        put_packets(batch, packets)
        count = len(packets)
        lengths = batch.length[:PACKETS].copy()
        parse(batch, count)
        route(batch, count, view, tunnel)
        expect(invariants.check_parsed(batch, count, lengths))
        per_message = GSO_SEGMENTS if tunnel.udp_gso[0] else 1
        done = 0
        while done < count:
            end = choose_whole(tunnel, batch, done, count, view)
            after, segments = encapsulate(tunnel, batch, done, end, view)
            assert done < after <= end <= count
            self.write_whole(tunnel, done, int(after), view)
            messages = plan(batch, segments, view, tunnel)
            lay_out(batch, segments, messages, view, len(tunnel.sockets), tunnel.udp_gso)
            sizes = self._scratch[:SEGMENTS]
            expect(
                invariants.check_sent(batch, done, after, segments, messages, per_message, sizes)
            )
            done = int(after)
        self.inputs += count
        self.accepted += int((batch.reason[:count] == Drop.NONE).sum())

    def write_whole(self, tunnel: Tunnel, first: int, after: int, view: FibView) -> None:
        """The headers of what leaves whole stay within the packet's own headroom."""
        batch = self._out
        for i in range(first, after):
            if batch.reason[i] != Drop.NONE or not batch.whole[i]:
                continue
            row = view.adjacencies[int(batch.adjacency[i])]
            assert row[KIND_AT] == Kind.REMOTE
            at = write_headers(tunnel, batch, i, row, 0, 0, 1)
            assert batch.start[i] - 128 <= at < batch.start[i]

    def departure(self, random: Random) -> FromTun:
        packet = self._from_tun[int(random.integers(len(self._from_tun)))]
        data = bytearray(packet.packet)
        if random.random() < 0.5:
            damage(random, data, 70)
        if random.random() < 0.1:
            shorten(random, data)
        packet = packet._replace(packet=bytes(data))
        if random.random() < 0.2:  # whatever the kernel may say of it
            return packet._replace(
                gso_type=int(random.choice([0, 1, 4, 5, 0x81, 0x84])),
                gso_size=int(random.choice([0, 1, 30, 1370, 65535])),
                csum_start=int(random.choice([-1, 0, 20, 40, 65535])),
                csum_offset=int(random.choice([0, 6, 16, 65535])),
            )
        return packet


def expect(code: object) -> None:
    assert code == 0, f"invariant {code} of tests/fuzz/invariants.py does not hold"
