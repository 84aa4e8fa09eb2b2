"""Control groups of both versions, filesystems, what torch has code for, what a sweep takes."""

import pytest

from experiments.config.recipe import load_config
from experiments.doctor.cgroups import cgroup_limit
from experiments.doctor.torch_probe import runs_on
from experiments.store.disk import disk_need_gib, filesystem


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def limits(base, own):
    return [cgroup_limit(what, base=base, own=own) for what in ("cpu", "memory", "memory_used")]


def test_the_tightest_group_of_version_2_counts(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/slice/job/step\n")
    base = tmp_path / "cgroup"
    write(base / "slice" / "job" / "step", cpu__max="max 100000", memory__max="max")
    write(base / "slice" / "job", cpu__max="250000 100000", memory__max="4000")
    write(base / "slice" / "job", memory__current="3000", memory__stat="anon 7\ninactive_file 900")
    write(base / "slice", cpu__max="800000 100000", memory__max="9000", memory__current="8999")
    assert limits(base, own) == [2.5, 4000, 2100]


def test_version_1_and_a_path_that_is_the_hosts(tmp_path):
    own = tmp_path / "own"
    own.write_text("4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n")
    base = tmp_path / "cgroup"
    write(base / "cpu,cpuacct", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    write(base / "memory", memory__limit_in_bytes="5000", memory__usage_in_bytes="1000")
    assert limits(base, own) == [1.5, 5000, 1000]
    write(base / "cpu,cpuacct", cpu__cfs_quota_us="-1")
    write(base / "memory", memory__limit_in_bytes="9223372036854771712")
    assert limits(base, own) == [None, None, None]


def test_a_machine_without_control_groups_has_no_limit(tmp_path):
    assert limits(tmp_path, tmp_path / "none") == [None, None, None]


def test_the_deepest_and_latest_mount_is_a_folders_filesystem(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs rw,nolock 0 0\nodd line\n"
        f"/dev/b {tmp_path}/in\\040side xfs rw 0 0\n/dev/c {tmp_path}/in\\040side tmpfs rw 0 0\n"
    )
    assert filesystem(tmp_path / "runs", mounts=mounts) == ("nfs", ["rw", "nolock"])
    assert filesystem(tmp_path / "in side" / "runs", mounts=mounts) == ("tmpfs", ["rw"])
    assert filesystem(tmp_path.parent, mounts=mounts) == ("ext4", ["rw"])
    assert filesystem(tmp_path, mounts=tmp_path / "none") == ("unknown", [])


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_90"], True),
        ((8, 0), ["sm_86"], False),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((12, 0), ["sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((12, 0), ["sm_100", "sm_120"], True),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), [], False),
    ],
)
def test_code_runs_on_its_major_number_and_compiles_for_later_ones(
    capability, architectures, expected
):
    assert runs_on(capability, architectures) is expected


def test_the_size_of_a_sweep_by_hand():
    base = ["data.subset.n_images=100", "split.test=20", "split.val=10", "split.train=50"]
    base += ["sweep.real_fraction=[]", "sweep.real_count=[10,20]", "sweep.seed=[0,1]"]
    # 80 embeddings of 2 MiB and 4 segmenters of 14 MiB.
    real = load_config("demo", [*base, "sweep.condition=[real]"])
    assert disk_need_gib(real) == pytest.approx((80 * 2 + 4 * 14) / 1024)
    # 7 more views of 3 x 20 drawn images, of which there are 50; 12 segmenters.
    strong = [*base, "sweep.condition=[strong]", "sweep.support=[0,1,2]", "augment.n_views=8"]
    expected = (2 * (80 + 7 * 50) + 12 * 14) / 1024
    assert disk_need_gib(load_config("demo", strong)) == pytest.approx(expected)
    # 50 views in a trial: ten images have five, twenty have two; 4 segmenters.
    few = [*base, "sweep.condition=[strong]", "augment.max_per_trial=50"]
    expected = (2 * (80 + 10 * 4 + 10 * 1) + 4 * 14) / 1024
    assert disk_need_gib(load_config("demo", few)) == pytest.approx(expected)
    # One set of 30 pairs for both conditions, from one generator; 8 segmenters.
    pairs = [*base, "sweep.condition=[synthetic,synthetic_no_gate]", "synthesis.n_candidates=30"]
    expected = (2 * (80 + 30) + 0.35 * 30 + 11 + 8 * 14) / 1024
    assert disk_need_gib(load_config("demo", pairs)) == pytest.approx(expected)


def test_the_size_of_the_sweep_that_it_was_measured_on():
    settings = ["synthesis.n_candidates=48", "augment.n_views=6", "sweep.support=[0,1,2,3,4]"]
    found = disk_need_gib(load_config("hc18_ablation", settings))
    assert found == pytest.approx(4.5, rel=0.2)
