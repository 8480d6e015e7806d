"""The formulas of the scaling model, on cases worked out by hand, and what must hold whatever the constants are."""

import math
from dataclasses import replace

import pytest
import torch
from alternation import flops_of
from scaling_devices import (
    DEVICES,
    RING_EFFICIENCY,
    RING_LATENCY,
    Device,
    all_gather,
    all_reduce,
    link,
    servers_for,
    training_bytes,
    waiting,
)
from scaling_networks import (
    Network,
    cached_bytes,
    clip_of,
    code_transformer,
    llamagen,
    transformer_flops,
    vgg_flops,
    vqgan,
)
from scaling_serving import Index, Launch, Probing, core_seconds, decode_step, search_hosts, serve
from scaling_training import Run, checkpoints, fits, hours, memory, step, throughput, utilisation
from torch.nn.attention import SDPBackend, sdpa_kernel

from codebrush.models.code_transformer import CodeTransformer
from codebrush.models.code_transformer_config import CodeTransformerConfig
from codebrush.models.vqgan import VQGANConfig

# 100 FLOP/s, 10 bytes/s of memory, a link of 8 and a network of 2 bytes/s, four devices a host
SLOW = Device(100, 50, 1000, 10, 8 / RING_EFFICIENCY, 2 / RING_EFFICIENCY, 4, 1.0)
NET = Network(forward=10, parameters=0, activations=20, inputs=2)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(DEVICES, "slow", SLOW)
    return "slow"


def run_of(devices: int, batch: int = 64, **changes: object) -> Run:
    run = Run(clip_of("ViT-B/32"), 1e9, "a100-80", devices, batch, 0.3, straggling=0.02)
    return replace(run, **changes)


def test_collectives_take_what_a_ring_takes():
    assert all_gather(800, SLOW, 1) == 0
    # each of four sends three of its quarters over its link of 8 bytes/s
    assert all_gather(800, SLOW, 4) == pytest.approx(600 / 8 + 3 * RING_LATENCY)
    assert all_reduce(800, SLOW, 4) == pytest.approx(2 * 600 / 8 + 6 * RING_LATENCY)
    # across hosts a host's four networks of 2 are as fast as the link; with one device a host there is one of 2
    assert link(SLOW, 8) == pytest.approx(8)
    assert link(replace(SLOW, per_host=1), 8) == pytest.approx(2)


def test_a_step_is_the_sum_of_its_parts(slow: str):
    run = Run(NET, 1000, slow, 1, 5, 0.5, decodes=False)
    assert run.step_flops == 150  # five samples, three passes of 10
    assert step(run).products == pytest.approx(3)  # at half of 100 FLOP/s
    assert step(run).seconds == pytest.approx(3)
    assert hours(run) == pytest.approx(1000 / 5 * 3 / 3600)
    assert replace(run, recompute=True).step_flops == 200
    optimizer = step(replace(run, network=replace(NET, parameters=2)))
    assert optimizer.optimizer == pytest.approx(8)  # 80 bytes at 10 a second
    late = step(replace(run, devices=16, straggling=0.1))  # four hosts, doubled twice
    assert late.straggling == pytest.approx(3 * 0.21)


def test_backward_hides_what_is_sent_but_for_the_last_part(slow: str):
    many = Run(replace(NET, parameters=100e6), 1000, slow, 4, 5, 0.5, decodes=False)
    sent = all_reduce(400e6, SLOW, 4)
    assert step(many).exposed == pytest.approx(sent - 2)  # two of the three seconds are backward
    long = replace(many, network=replace(many.network, forward=1e12))
    assert step(long).exposed == pytest.approx(all_reduce(25e6, SLOW, 4))


def test_fsdp_gathers_weights_twice_and_scatters_gradients(slow: str):
    sharded = Run(replace(NET, parameters=100e6, layers=10), 1000, slow, 4, 5, 0.5, sharded=True, decodes=False)
    gathered = all_gather(400e6, SLOW, 4)
    assert step(sharded).exposed == pytest.approx(3 * gathered - 3)
    assert step(sharded).sent == pytest.approx(0.75 * 12 * 100e6)
    half = replace(sharded, gathered=2)
    assert step(half).sent == pytest.approx(0.75 * 8 * 100e6)
    long = replace(half, network=replace(half.network, forward=1e12))
    assert step(long).exposed == pytest.approx(all_gather(20e6, SLOW, 4))


def test_data_is_waited_for_where_decoding_is_slower(slow: str):
    run = Run(NET, 1000, slow, 1, 45_000, 1.0, cores=1)
    assert step(run).data == 0  # 100 s to decode at 450/s, and 13,500 to compute
    fast = replace(run, network=replace(NET, forward=1e-3))
    assert step(fast).seconds == pytest.approx(100)
    assert step(fast).bottleneck == "data"


def test_the_logits_of_all_pairs_are_counted(slow: str):
    run = Run(replace(NET, features=4), 1000, slow, 2, 5, 1.0)
    assert run.step_flops == 150 + 3 * 2 * 5 * 10 * 4 * 2  # three passes, two directions, 5 rows with 10


def test_utilisation_gives_back_the_step_it_came_from():
    run = run_of(128)
    assert utilisation(replace(run, utilisation=1.0), step(run).seconds) == pytest.approx(0.3, rel=1e-6)


def test_more_hosts_are_faster_and_wait_more():
    speeds, shares = [], []
    for devices in (8, 16, 64, 256, 1024):
        run = run_of(devices, batch=32_768 // devices)
        spent = step(run)
        speeds.append(throughput(run))
        shares.append((spent.exposed + spent.straggling) / spent.seconds)
    assert speeds == sorted(speeds)
    assert shares == sorted(shares)
    computed = [step(run_of(devices, batch=32_768 // devices)).products for devices in (8, 16, 64, 256)]
    assert computed == sorted(computed, reverse=True)


def test_memory_is_what_is_held_and_shrinks_by_sharding():
    assert training_bytes(1000) == 22_000  # 20 a parameter in float32, two in bfloat16
    assert training_bytes(1000, sharded_over=10) == 6_000  # a whole copy in float32 with the tenth
    run = run_of(8, batch=4096)
    assert memory(replace(run, recompute=True)) < memory(run)
    assert memory(replace(run, sharded=True)) < memory(run)
    assert not fits(run)
    assert fits(replace(run, batch=64))


def test_checkpoints_lose_least_at_their_interval():
    run = run_of(64)
    every, lost = checkpoints(run)
    writing = 16 * run.network.parameters / (2e9 * 8)
    between = 50_000 * 3600 / 64

    def share(interval: float) -> float:
        return writing / interval + interval / 2 / between

    assert lost == pytest.approx(share(every))
    assert lost < min(share(every * 2), share(every / 2))


@pytest.mark.parametrize(("load", "servers", "chance"), [(0.5, 1, 0.5), (1.0, 2, 1 / 3), (2.0, 3, 4 / 9), (3, 3, 1)])
def test_waiting_is_erlangs(load: float, servers: int, chance: float):
    assert waiting(load, servers) == pytest.approx(chance)


def test_servers_are_busy_at_most_so_long():
    assert servers_for(70, 0.7) == 100
    assert servers_for(0.7, 0.7, chance=0.05) == 3  # with two, a sixth of them would wait


def test_flops_of_transformers_are_those_that_torch_counts():
    config = CodeTransformerConfig(128, (4, 4), 64, 3, 4, labels=10)
    network = CodeTransformer(config).eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted on a CPU
        counted = flops_of(lambda: network(torch.zeros(1, 16, dtype=torch.int64)))
    assert code_transformer(config).forward == pytest.approx(counted, rel=0.001)
    assert code_transformer(config).parameters == pytest.approx(
        sum(weight.numel() for weight in network.parameters()), rel=0.05
    )


def test_a_block_by_hand():
    # 2 tokens, width 3, MLP 5: four matrices of 9 and two of 15, each weight twice a token; scores and sums 4 * 4 * 3
    assert transformer_flops(2, 3, 1, 5) == 2 * 2 * (36 + 30) + 4 * 4 * 3
    assert transformer_flops(2, 3, 7, 5) == 7 * transformer_flops(2, 3, 1, 5)
    assert vgg_flops(224) == pytest.approx(30.7e9, rel=0.01)  # 15.3 G multiplications, as is known of VGG-16


@pytest.mark.parametrize(
    ("name", "gflops", "millions"),  # of open_clip's docs/model_profile.csv
    [
        ("ViT-B/32", 14.78, 151.28),
        ("ViT-B/16", 41.09, 149.62),
        ("ViT-B/16+ 240", 64.03, 208.38),
        ("ViT-L/14", 175.33, 427.62),
        ("ViT-g/14", 581.15, 1366.68),
        ("RN50x64", 552.65, 623.26),
    ],
)
def test_clips_have_the_published_sizes(name: str, gflops: float, millions: float):
    assert clip_of(name).forward / 1e9 == pytest.approx(gflops, rel=0.02)
    assert clip_of(name).parameters / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("name", "millions"), [("B", 111), ("L", 343), ("XL", 775), ("XXL", 1400), ("3B", 3100)])
def test_llamagen_has_its_sizes(name: str, millions: float):
    assert code_transformer(llamagen(name)).parameters / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_vqgan_costs_its_losses_too():
    config = VQGANConfig(image_size=32, channels=16, channel_multipliers=(1, 1, 2), norm_groups=8, codebook_size=128)
    net = vqgan(config)
    assert net.extra > 4 * vgg_flops(32)
    assert 0 < net.inputs < net.activations


def test_a_step_of_drawing_reads_weights_or_computes():
    config, none = llamagen("B"), Launch(0, 0)
    device = DEVICES["a100-80"]
    read = 2 * config.linear_weights + cached_bytes(config, 128)
    assert decode_step(config, "a100-80", 1, none, 0.5) == pytest.approx(read / device.bandwidth)
    many = decode_step(config, "a100-80", 4096, none, 0.001)
    assert many == pytest.approx(4096 * decode_step(config, "a100-80", 1, none, 1e-9) * 1e-6, rel=0.01)
    launched = decode_step(config, "a100-80", 1, Launch(1e-3, 2e-3), 0.5)
    assert launched == pytest.approx(read / device.bandwidth + 12e-3 + 2e-3)


def test_larger_batches_draw_more_and_take_longer():
    used = {"codes": 0.4, "pixels": 0.2}
    drawn = [serve(llamagen("XL"), "a100-80", Launch(1e-4, 1e-3), used, batch) for batch in (1, 8, 64, 256)]
    assert [one.rate for one in drawn] == sorted(one.rate for one in drawn)
    assert [one.seconds for one in drawn] == sorted(one.seconds for one in drawn)
    assert drawn[0].bound == "launches"


def test_an_index_by_hand():
    flat, lists = Index("flat", 40), Index("lists", 8, lists=100, probes=5, candidates=10, width=4)
    assert flat.bytes(1000) == 48_000
    assert flat.read(1000) == 48_000
    assert lists.bytes(1000) == 16_000 + 100 * (16 + 256)
    assert lists.read(1000) == 800
    assert lists.read(1000, uneven=1.5) == pytest.approx(1200)
    assert Index("graph", 8, candidates=10, links=4).read(1e9) == 640
    assert core_seconds(lists, 1000, Probing(1, 2, 3), 100) == 3 + 10 + 10 + 8


def test_hosts_of_a_search_follow_from_memory_and_queries():
    from scaling_devices import Host

    host = Host(cores=10, memory=100_000, bandwidth=1e9, usable=0.5)
    assert search_hosts(Index("flat", 92), 1000, 1, 1.0, host) == (2, 2)  # 100,000 bytes in halves of a host
    parts, hosts = search_hosts(Index("flat", 92), 1000, 70, 1.0, host)
    assert (parts, hosts) == (2, 2 * math.ceil(70 / 14))  # 7 queries/s of each host's cores
