import json
import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from dlqat_tf.export.runtimes.adb import AndroidError, devices
from dlqat_tf.export.runtimes.android import benchmark_android, parse_output
from dlqat_tf.export.runtimes.benchmark import REFERENCE_KERNEL

HERE = Path(__file__).parent / "android"
SCRIPT = Path(__file__).parents[3] / "export" / "benchmark_android.py"
SERIAL = "FA7AL1A00241"


def recorded(name):
    return (HERE / "outputs" / f"{name}.txt").read_text()


class Device:
    """The stand-in's device: a folder with the files and programs of a phone."""

    def __init__(self, root, monkeypatch):
        self.root, self.monkeypatch = root, monkeypatch
        self.tmp = root / "data/local/tmp"
        self.tmp.mkdir(parents=True)
        for cpu, (governor, mhz) in enumerate([("schedutil", 1804), ("performance", 2841)]):
            folder = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
            folder.mkdir(parents=True)
            (folder / "scaling_governor").write_text(governor)
            (folder / "scaling_cur_freq").write_text("300000")
            (folder / "cpuinfo_max_freq").write_text(str(1000 * mhz))
        self.set("abis", "arm64-v8a,armeabi-v7a,armeabi")
        self.set("free", "1048576")
        self.command(
            "getprop",
            'case "$1" in *manufacturer) echo Google;; *soc.model) echo MSM8996;; '
            f"*model) echo Pixel XL;; *release) echo 10;; *abilist) cat {root}/abis;; esac",
        )
        self.command(
            "df",
            "echo 'Filesystem     1K-blocks     Used Available Use% Mounted on'; "
            f'echo "/dev/block/dm-5 111685048 40000000 $(cat {root}/free)  38% /data"',
        )
        self.command(
            "dumpsys",
            'case "$1" in battery) echo "  level: 80"; echo "  temperature: 287";; '
            "thermalservice) echo 'Thermal Status: 1'; echo 'Cached temperatures:'; "
            "echo '  Temperature{mValue=99.0, mType=0, mName=CPU0, mStatus=0}'; "
            "echo 'Current temperatures from HAL:'; "
            "echo '  Temperature{mValue=41.5, mType=0, mName=CPU0, mStatus=0}'; "
            "echo '  Temperature{mValue=43.5, mType=0, mName=CPU1, mStatus=0}'; "
            "echo '  Temperature{mValue=77.0, mType=3, mName=skin, mStatus=0}';; esac",
        )
        monkeypatch.setenv("PATH", str(HERE), prepend=os.pathsep)
        monkeypatch.setenv("STAND_IN", str(root))
        for variable in ("DLQAT_BENCHMARK_MODEL", "DLQAT_LCE_BENCHMARK_MODEL", "ANDROID_SERIAL"):
            monkeypatch.delenv(variable, raising=False)

    def set(self, name, text):
        (self.root / name).write_text(text)

    def mode(self, name):
        self.monkeypatch.setenv("STAND_IN_MODE", name)

    def command(self, name, script):
        path = self.root / "system/bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def log(self, name):
        path = self.root / f"{name}.log"
        return path.read_text().splitlines() if path.exists() else []

    def launches(self, name):
        return [json.loads(line) for line in self.log(name)]

    def is_clean(self):
        return list(self.tmp.iterdir()) == []


@pytest.fixture
def device(tmp_path, monkeypatch):
    (tmp_path / "device").mkdir()
    return Device(tmp_path / "device", monkeypatch)


def program(folder, name, output="tflite_percentiles", machine=183, linker=b"/system/bin/linker64"):
    """A program for Android: an ELF header, which the stand-in takes off, before a script.

    A wrong machine keeps the stand-in honest too: the header is all that Android looks at.
    """
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    header = (b"\x7fELF".ljust(18, b"\0") + machine.to_bytes(2, "little") + linker).ljust(64, b"\0")
    script = (
        f"#!{sys.executable}\nRECORDED = {name.split('/')[-1]!r}\nOUTPUT = {recorded(output)!r}\n"
    )
    path.write_bytes(header + script.encode() + (HERE / "program.py").read_bytes())
    return path


@pytest.fixture
def tflite(tmp_path):
    return program(tmp_path, "benchmark_model")


@pytest.fixture
def lce(tmp_path):
    return program(tmp_path, "lce_benchmark_model", "tflite_no_percentiles")


def test_output_with_percentiles():
    launch = parse_output(recorded("tflite_percentiles"))
    assert launch.runs == 50
    assert launch.init_ms == pytest.approx(614.333)
    assert launch.first_ms == pytest.approx(905.463)
    assert launch.average_ms == pytest.approx(899.641)
    assert launch.median_ms == pytest.approx(899.281)
    assert (launch.init_memory_mb, launch.memory_mb) == (146.363, 150.141)
    assert launch.delegated == "some"


def test_output_without_percentiles():
    launch = parse_output(recorded("tflite_no_percentiles"))
    assert launch.average_ms == pytest.approx(602.943)
    assert launch.median_ms is None
    assert launch.memory_mb == 149.531


def test_output_of_2020():
    launch = parse_output(recorded("tflite_2020"))
    assert (launch.runs, launch.delegated) == (50, None)
    assert launch.average_ms == pytest.approx(33.2094)
    assert (launch.init_memory_mb, launch.memory_mb) == (0, 12.8672)


def test_output_on_a_gpu_without_memory():
    launch = parse_output(recorded("tflite_gpu"))
    assert (launch.delegated, launch.memory_mb) == ("all", None)
    assert launch.first_ms == pytest.approx(125.113)


def test_output_where_all_runs_take_the_same_time_or_seconds():
    launch = parse_output(
        "count=9 curr=7(all same)\ncount=61 curr=5(all same)\nInference timings in us: Init: 855, "
        "First inference: 7, Warmup (avg): 2.89509e+07, Inference (avg): 3.02496e+07\n"
        "Though NNAPI delegate is explicitly applied, the model graph will not be executed by the "
        "delegate."
    )
    assert launch.runs == 61
    assert launch.average_ms == pytest.approx(30249.6)
    assert launch.delegated == "none"


def test_unfinished_output():
    unfinished = recorded("tflite_2020").partition("Inference timings")[0]
    with pytest.raises(ValueError, match="no line 'Inference timings in us'"):
        parse_output(unfinished)


def test_end_to_end(device, stock_file, lce_file, tflite, lce):
    report = benchmark_android(
        [stock_file, lce_file], tflite_binary=tflite, lce_binary=lce, launches=3
    )
    assert device.is_clean()
    stock, binarized = report.files
    # The stand-in's launches take 0, 1 and 2 ms longer than recorded.
    assert stock.statistic == "median"
    assert stock.median_ms == pytest.approx(899.281 + 1)
    assert stock.interquartile_range_ms == pytest.approx(1.5 - 0.5)
    assert [launch.median_ms for launch in stock.launches] == pytest.approx(
        [899.281, 900.281, 901.281]
    )
    assert (stock.first_ms, stock.init_ms) == pytest.approx((905.463, 614.333))
    assert (stock.memory_mb, stock.delegated, stock.abi) == (150.141, "some", "arm64-v8a")
    assert (stock.ratio, stock.binary) == (1, str(tflite))
    assert binarized.statistic == "average"
    assert binarized.median_ms == pytest.approx(602.943 + 1)
    assert binarized.binary == str(lce)
    assert binarized.ratio == pytest.approx((602.943 + 1) / (899.281 + 1))
    assert (stock.note, binarized.note) == (None, None)

    # Files take turns, and each program got the right file.
    assert device.log("order") == ["model0.tflite", "model1.tflite"] * 3
    assert {launch["size"] for launch in device.launches("benchmark_model")} == {stock.bytes}
    assert {launch["size"] for launch in device.launches("lce_benchmark_model")} == {
        binarized.bytes
    }
    folders = {line.split("mkdir ")[1] for line in device.log("adb") if "mkdir" in line}
    benchmark_android([stock_file], tflite_binary=tflite, launches=3)
    folders |= {line.split("mkdir ")[1] for line in device.log("adb") if "mkdir" in line}
    assert len(folders) == 2
    assert all(folder.startswith("/data/local/tmp/dlqat_") for folder in folders)


def test_device_is_described(device, stock_file, tflite):
    report = benchmark_android([stock_file], tflite_binary=tflite, launches=3)
    facts = report.device
    assert (facts.serial, facts.model, facts.soc) == (SERIAL, "Google Pixel XL", "MSM8996")
    assert (facts.android, facts.abis[0]) == ("10", "arm64-v8a")
    assert facts.governors == {0: "schedutil", 1: "performance"}
    assert facts.maximum_mhz == {0: 1804, 1: 2841}
    assert facts.free_bytes == 2**30
    for conditions in (report.before, report.after):
        assert conditions.mhz == {0: 300, 1: 300}
        assert (conditions.battery_celsius, conditions.cpu_celsius) == (28.7, 43.5)
        assert conditions.thermal_status == 1
    read = json.loads(report.to_json())
    assert read["device"]["model"] == "Google Pixel XL"
    assert len(read["files"][0]["launches"]) == 3
    assert "governor performance, schedutil; battery 28.7 to 28.7" in str(report)


def test_device_that_tells_nothing(device, stock_file, tflite):
    for command in ("df", "dumpsys"):
        device.command(command, "echo 'not found' >&2; exit 127")
    for file in (device.root / "sys").rglob("cpufreq/*"):
        file.unlink()
    report = benchmark_android([stock_file], tflite_binary=tflite, launches=3)
    assert report.device.free_bytes is None
    assert report.device.governors == {0: "unknown", 1: "unknown"}
    assert (report.before.mhz, report.before.cpu_celsius) == ({}, None)
    assert "battery ? to ?" in str(report)


@pytest.mark.parametrize(("delegate", "xnnpack"), [("cpu", "false"), ("xnnpack", "true")])
def test_options_reach_the_program(device, stock_file, tflite, delegate, xnnpack):
    options = {"runs": 60, "warmup": 4, "threads": 3, "delegate": delegate}
    report = benchmark_android(
        [stock_file], tflite_binary=tflite, launches=3, timeout=77, **options
    )
    for launch in device.launches("benchmark_model"):
        assert (launch["num_runs"], launch["warmup_runs"]) == ("60", "4")
        assert (launch["num_threads"], launch["use_xnnpack"]) == ("3", xnnpack)
        assert launch["max_secs"] == "77"
    assert {name: getattr(report, name) for name in options} == options


@pytest.mark.parametrize("delegate", ["gpu", "nnapi"])
def test_accelerators(device, stock_file, tmp_path, delegate):
    binary = program(tmp_path, "benchmark_model", "tflite_gpu")
    report = benchmark_android([stock_file], tflite_binary=binary, launches=3, delegate=delegate)
    assert report.files[0].delegated == "all"
    assert device.launches("benchmark_model")[0][f"use_{delegate}"] == "true"


@pytest.mark.parametrize(
    ("delegate", "line"),
    [
        ("gpu", "GPU acceleration is unsupported on this platform."),
        ("xnnpack", "Unconsumed cmdline flags: --use_xnnpack=true"),
        (
            "nnapi",
            "Though NNAPI delegate is explicitly applied, the model graph will not be executed by "
            "the delegate.",
        ),
    ],
)
def test_no_cpu_time_passes_for_an_accelerators(
    device, stock_file, tflite, monkeypatch, delegate, line
):
    applied = next(
        text for text in recorded("tflite_percentiles").splitlines() if "Explicitly" in text
    )
    tflite.write_bytes(tflite.read_bytes().replace(applied.encode(), line.encode()))
    with pytest.raises(AndroidError, match=f"run on the {delegate.upper()} delegate, but"):
        benchmark_android([stock_file], tflite_binary=tflite, launches=3, delegate=delegate)
    assert device.is_clean()


def test_cpus_bind_the_program(device, stock_file, tflite):
    report = benchmark_android([stock_file], tflite_binary=tflite, launches=3, cpus=[1])
    assert {tuple(launch["affinity"]) for launch in device.launches("benchmark_model")} == {(1,)}
    assert any("exec taskset 2 ./program0" in line for line in device.log("adb"))
    assert report.cpus == (1,)
    with pytest.raises(ValueError, match=r"Expected CPUs in \[0, 1\], received \(0, 4\)"):
        benchmark_android([stock_file], tflite_binary=tflite, cpus=[0, 4])


def test_programs_from_the_environment(device, stock_file, lce_file, tflite, lce, monkeypatch):
    monkeypatch.setenv("DLQAT_LCE_BENCHMARK_MODEL", str(lce))
    # The LCE program alone runs both kinds of files.
    report = benchmark_android([stock_file, lce_file], launches=3)
    assert [row.binary for row in report.files] == [str(lce)] * 2
    monkeypatch.setenv("DLQAT_BENCHMARK_MODEL", str(tflite))
    report = benchmark_android([stock_file, lce_file], launches=3)
    assert [row.binary for row in report.files] == [str(tflite), str(lce)]


def test_no_program(device, stock_file, lce_file, tflite, tmp_path):
    with pytest.raises(ValueError, match=r"Expected benchmark_model for .*DLQAT_BENCHMARK_MODEL"):
        benchmark_android([stock_file])
    with pytest.raises(ValueError, match=r"Expected lce_benchmark_model .*LCE_BENCHMARK_MODEL"):
        benchmark_android([lce_file], tflite_binary=tflite)
    with pytest.raises(FileNotFoundError, match="found none at"):
        benchmark_android([stock_file], tflite_binary=tmp_path / "absent")
    assert device.log("adb") == []


@pytest.mark.parametrize(
    ("abis", "taken"),
    [("arm64-v8a,armeabi-v7a", "arm64-v8a"), ("armeabi-v7a,armeabi", "armeabi-v7a")],
)
def test_the_program_for_the_abi_is_picked(device, stock_file, lce_file, tmp_path, abis, taken):
    device.set("abis", abis)
    folder = tmp_path / "programs"
    for machine, abi in ((183, "arm64-v8a"), (40, "armeabi-v7a"), (62, "x86_64")):
        program(folder, f"{abi}/benchmark_model", machine=machine)
        program(folder, f"{abi}/lce_benchmark_model", machine=machine)
    report = benchmark_android(
        [stock_file, lce_file], tflite_binary=folder, lce_binary=folder, launches=3
    )
    assert [row.abi for row in report.files] == [taken] * 2
    assert [row.binary for row in report.files] == [
        str(folder / taken / "benchmark_model"),
        str(folder / taken / "lce_benchmark_model"),
    ]


def test_wrong_abi(device, stock_file, tmp_path):
    wrong = program(tmp_path, "benchmark_model", machine=62)
    with pytest.raises(AndroidError, match=r"for arm64-v8a or .* with x86_64"):
        benchmark_android([stock_file], tflite_binary=wrong)
    linux = program(tmp_path, "benchmark_model", linker=b"/lib/ld-linux-aarch64.so.1")
    with pytest.raises(AndroidError, match="which is for Linux"):
        benchmark_android([stock_file], tflite_binary=linux)
    linux.write_text("<html>Sign in to download</html>")
    with pytest.raises(AndroidError, match="which is not one"):
        benchmark_android([stock_file], tflite_binary=linux)
    assert not any("push" in line for line in device.log("adb"))


def test_lce_on_an_x86_emulator_is_no_benchmark(device, stock_file, lce_file, tmp_path):
    device.set("abis", "x86_64")
    tflite = program(tmp_path, "benchmark_model", machine=62)
    lce = program(tmp_path, "lce_benchmark_model", machine=62)
    report = benchmark_android(
        [stock_file, lce_file], tflite_binary=tflite, lce_binary=lce, launches=3
    )
    assert [row.note for row in report.files] == [None, REFERENCE_KERNEL]
    assert [row.ratio for row in report.files] == [1, None]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("none", "found none: connect one"),
        ("unauthorized", f"{SERIAL}, which is unauthorized: unlock it"),
        ("offline", f"{SERIAL}, which is offline: reconnect it"),
        ("no permissions", "which is no permissions: give your user access"),
        ("several", f"Expected --serial, since several .*: {SERIAL}, emulator-5554"),
    ],
)
def test_no_device_to_use(device, stock_file, tflite, mode, message):
    device.mode(mode)
    with pytest.raises(AndroidError, match=message):
        benchmark_android([stock_file], tflite_binary=tflite)
    assert device.log("adb") == ["devices -l"]


def test_serial_picks_the_device(device, stock_file, tflite, monkeypatch):
    device.mode("several")
    report = benchmark_android([stock_file], tflite_binary=tflite, launches=3, serial=SERIAL)
    assert report.device.serial == SERIAL
    with pytest.raises(AndroidError, match="emulator-5554, which is offline"):
        benchmark_android([stock_file], tflite_binary=tflite, serial="emulator-5554")
    with pytest.raises(AndroidError, match=r"connected device \(.*\), received other"):
        benchmark_android([stock_file], tflite_binary=tflite, serial="other")
    monkeypatch.setenv("ANDROID_SERIAL", SERIAL)
    assert benchmark_android([stock_file], tflite_binary=tflite, launches=3).device.serial == SERIAL


def test_devices(device):
    (only,) = devices()
    assert (only.serial, only.state, only.model) == (SERIAL, "device", "Pixel XL")
    device.mode("several")
    assert [found.state for found in devices()] == ["device", "offline"]


def test_no_adb(device, stock_file, tflite, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AndroidError, match="Expected adb on PATH, found none"):
        benchmark_android([stock_file], tflite_binary=tflite)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("crash", r"benchmark_model on .*stock\.tflite was ended by SIGSEGV: INFO: STARTING!"),
        ("status", r"benchmark_model on .* failed with status 1: ERROR: Benchmarking failed\."),
        ("silent", "Expected the timings of .*, received no line"),
        ("full", "adb failed: failed to copy .*No space left on device"),
        ("hang", r"stock\.tflite to end within 3 seconds, but it did not"),
    ],
)
def test_failures_leave_the_device_clean(device, stock_file, tflite, mode, message):
    device.mode(mode)
    timeout = 3 if mode == "hang" else 60
    with pytest.raises(AndroidError, match=message) as raised:
        benchmark_android([stock_file], tflite_binary=tflite, timeout=timeout)
    assert "\n" not in str(raised.value)
    assert device.is_clean()
    for launch in device.launches("benchmark_model"):
        assert not is_running(launch["pid"])


def test_not_enough_space(device, stock_file, tflite):
    device.set("free", "3")
    with pytest.raises(AndroidError, match=r"Expected 0\.0 MB free .*, received 0\.0 MB: free"):
        benchmark_android([stock_file], tflite_binary=tflite)
    assert not any("push" in line or "mkdir" in line for line in device.log("adb"))


def test_device_goes_away(device, stock_file, tflite):
    device.mode("gone")
    with pytest.raises(AndroidError) as raised:
        benchmark_android([stock_file], tflite_binary=tflite)
    (left,) = device.tmp.iterdir()
    assert f"remove it with `adb -s {SERIAL} shell rm -rf /data/local/tmp/{left.name}`" in str(
        raised.value
    )


def test_other_tool_of_the_same_name(device, stock_file, tflite):
    output = recorded("tflite_percentiles").partition("INFO: Running")[0]
    content = tflite.read_bytes().replace(repr(output)[1:-1].encode(), b"BENCHMARK RESULTS ")
    tflite.write_bytes(content)
    assert "BENCHMARK RESULTS" in recorded("litert_compiled_model")
    with pytest.raises(AndroidError, match="received LiteRT's CompiledModel tool"):
        benchmark_android([stock_file], tflite_binary=tflite)
    assert device.is_clean()


@pytest.fixture
def interrupts():
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_interrupt_leaves_the_device_clean(device, stock_file, tflite):
    device.mode("hang")

    def interrupt_once_launched():
        while not device.log("benchmark_model"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt_once_launched, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        benchmark_android([stock_file], tflite_binary=tflite)
    assert device.is_clean()
    assert not is_running(device.launches("benchmark_model")[0]["pid"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launches": 2}, "launches of at least 3, received launches=2"),
        ({"runs": 49}, "runs of at least 50, received runs=49"),
        ({"warmup": -1}, "warmup of at least 0, received warmup=-1"),
        ({"threads": 0}, "threads of at least 1, received threads=0"),
        ({"timeout": 0}, "timeout above 0 seconds, received timeout=0"),
        ({"delegate": "npu"}, "delegate in cpu, xnnpack, gpu, nnapi, received 'npu'"),
    ],
)
def test_arguments_out_of_range(device, stock_file, tflite, options, message):
    with pytest.raises(ValueError, match=message):
        benchmark_android([stock_file], tflite_binary=tflite, **options)
    assert device.log("adb") == []


def test_files_that_cannot_be_measured(device, tflite, tmp_path):
    with pytest.raises(ValueError, match=r"at least one \.tflite file"):
        benchmark_android([], tflite_binary=tflite)
    (tmp_path / "text.tflite").write_text("not a flatbuffer")
    with pytest.raises(ValueError, match="which is not one"):
        benchmark_android([tmp_path / "text.tflite"], tflite_binary=tflite)
    assert device.log("adb") == []


@pytest.fixture
def run_script(monkeypatch, capsys):
    """Run the script in this process, which has TensorFlow loaded already."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_script_end_to_end(device, stock_file, tflite, tmp_path, run_script):
    target = tmp_path / "report.json"
    arguments = (stock_file, "--tflite-binary", tflite, "--launches", 4, "--json", target)
    status, printed, errors = run_script(*arguments)
    assert status == 0, errors
    assert "Google Pixel XL, Android 10" in printed
    assert len(json.loads(target.read_text())["files"][0]["launches"]) == 4

    status, _, errors = run_script(*arguments)
    assert status == 2
    assert errors.startswith("error: Expected a new file")
    assert errors.count("\n") == 1


def test_script_lists_devices(device, run_script):
    assert run_script("--list") == (0, f"{SERIAL}  device  Pixel XL\n", "")
    device.mode("unauthorized")
    assert run_script("--list")[1] == f"{SERIAL}  unauthorized\n"
    device.mode("none")
    assert run_script("--list")[1] == "no device is connected\n"


def test_script_fails_in_one_line(device, run_script, stock_file, tflite):
    device.mode("crash")
    status, printed, errors = run_script(stock_file, "--tflite-binary", tflite)
    assert (status, printed) == (2, "")
    assert errors.startswith("error: ")
    assert "SIGSEGV" in errors
    assert errors.count("\n") == 1


def is_running(pid):
    """Whether a process exists and is not a zombie waiting for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_file_whose_name_begins_with_a_hyphen(device, stock_file, tflite, tmp_path, monkeypatch):
    """Which adb would take for an option."""
    (tmp_path / "-p.tflite").write_bytes(stock_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    report = benchmark_android(["./-p.tflite", Path("-p.tflite")], tflite_binary=tflite, launches=3)
    assert [row.path for row in report.files] == ["./-p.tflite", "-p.tflite"]
    pushed = [line.split()[3] for line in device.log("adb") if " push " in line]
    assert set(pushed[1:]) == {str(tmp_path / "-p.tflite")}
