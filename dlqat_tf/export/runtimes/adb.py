"""Android devices by ``adb``: which there are, what they are, and programs that run on them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = "/data/local/tmp"  # the one place where adb's user may execute a file
_SECONDS = 60  # for anything that is quick on a working device
_STATES = {
    "unauthorized": "unlock it and accept the USB debugging prompt",
    "offline": "reconnect it, or run `adb reconnect`",
    "no permissions": "give your user access to the USB device (udev rules on Linux)",
}


class AndroidError(RuntimeError):
    """A device, adb or a benchmark program did not do what was asked; the message says what."""


@dataclass(frozen=True)
class Device:
    """A line of ``adb devices``.

    Attributes:
        serial: Serial number.
        state: ``"device"`` where it can be used, else for example ``"unauthorized"``.
        model: Model name, None where adb does not know it.
    """

    serial: str
    state: str
    model: str | None


@dataclass(frozen=True)
class DeviceFacts:
    """What a device is. None where the device does not tell.

    Attributes:
        serial: Serial number.
        model: Manufacturer and model.
        soc: System on chip.
        android: Version of Android.
        abis: Binary interfaces that it runs, the preferred one first.
        governors: CPU frequency governor by CPU.
        maximum_mhz: Highest frequency by CPU, in MHz.
        free_bytes: Free space under ``/data/local/tmp``.
    """

    serial: str
    model: str | None
    soc: str | None
    android: str | None
    abis: tuple[str, ...]
    governors: dict[int, str]
    maximum_mhz: dict[int, float]
    free_bytes: int | None


@dataclass(frozen=True)
class Conditions:
    """State of a device that a latency depends on. None where the device does not tell.

    Attributes:
        mhz: Current frequency by CPU, in MHz.
        battery_celsius: Temperature of the battery, in degrees Celsius.
        cpu_celsius: Highest temperature of a CPU sensor, in degrees Celsius.
        thermal_status: Android's throttling level, 0 (none) to 6 (shutdown).
    """

    mhz: dict[int, float]
    battery_celsius: float | None
    cpu_celsius: float | None
    thermal_status: int | None


def devices() -> list[Device]:
    """List the devices that adb knows.

    Raises:
        AndroidError: adb is not installed or does not answer.
    """
    found = []
    for line in _adb("devices", "-l").splitlines():
        # "List of devices attached" and the daemon's messages match no state.
        match = re.match(
            r"(\S+)\s+(device|unauthorized|offline|no permissions|authorizing|connecting|recovery"
            r"|rescue|sideload|bootloader|host)\b(.*)",
            line,
        )
        if match:
            model = re.search(r"\bmodel:(\S+)", match[3])
            found.append(Device(match[1], match[2], model and model[1].replace("_", " ")))
    return found


def select(serial: str | None) -> Device:
    """Return the device to use, or say why there is none."""
    connected = devices()
    serials = ", ".join(device.serial for device in connected)
    serial = serial or os.environ.get("ANDROID_SERIAL")  # as adb itself does
    if not connected:
        raise AndroidError(
            "Expected a connected Android device, found none: connect one with USB debugging on."
        )
    if serial is None and len(connected) > 1:
        raise AndroidError(f"Expected --serial, since several devices are connected: {serials}.")
    for device in connected:
        if serial in (None, device.serial):
            if device.state != "device":
                raise AndroidError(
                    f"Expected a device that is ready, received {device.serial}, which is "
                    f"{device.state}: {_STATES.get(device.state, 'start Android on it')}."
                )
            return device
    raise AndroidError(f"Expected the serial of a connected device ({serials}), received {serial}.")


def facts(serial: str) -> tuple[DeviceFacts, Conditions]:
    """Read what a device is and how it is; files that it does not show stay empty."""
    output = shell(
        serial,
        "{ echo model=$(getprop ro.product.manufacturer) $(getprop ro.product.model);"
        " echo soc=$(getprop ro.soc.model);"
        " echo android=$(getprop ro.build.version.release);"
        " echo abis=$(getprop ro.product.cpu.abilist);"
        " for cpu in /sys/devices/system/cpu/cpu[0-9]*; do f=$cpu/cpufreq;"
        " echo cpu=${cpu##*/cpu},$(cat $f/scaling_governor),$(cat $f/scaling_cur_freq),"
        "$(cat $f/cpuinfo_max_freq); done;"
        f" echo free=$(df -k {FOLDER} | tail -n 1);"
        " echo battery=$(dumpsys battery | grep temperature:);"
        " echo thermal=$(dumpsys thermalservice); } 2>/dev/null",
    )
    values: dict[str, str] = dict(re.findall(r"^(\w+)=(.*)$", output, re.MULTILINE))
    governors, current, maximum = {}, {}, {}
    for cpu, governor, now, most in re.findall(
        r"^cpu=(\d+),([^,\s]*),(\d*),(\d*)\s*$", output, re.MULTILINE
    ):
        governors[int(cpu)] = governor or "unknown"
        if now:
            current[int(cpu)] = int(now) / 1000
        if most:
            maximum[int(cpu)] = int(most) / 1000
    # "Filesystem 1K-blocks Used Available Use% Mounted on"
    free = re.search(r"(\d+) +\d+% +\S+\s*$", values.get("free", ""))
    battery = re.search(r"temperature: *(\d+)", values.get("battery", ""))
    # The dump repeats old values under "Cached temperatures"; type 0 is a CPU.
    sensors = values.get("thermal", "").partition("Current temperatures from HAL")[2]
    hot = re.findall(r"Temperature\{mValue=([\d.]+), mType=0,", sensors)
    status = re.search(r"Thermal Status: (\d)", values.get("thermal", ""))
    abis = tuple(values.get("abis", "").strip().split(",")) if values.get("abis") else ()
    if not abis:
        raise AndroidError(f"Expected device {serial} to name its ABIs, received nothing.")
    return (
        DeviceFacts(
            serial=serial,
            model=values.get("model", "").strip() or None,
            soc=values.get("soc", "").strip() or None,
            android=values.get("android", "").strip() or None,
            abis=abis,
            governors=governors,
            maximum_mhz=maximum,
            free_bytes=1024 * int(free[1]) if free else None,
        ),
        Conditions(
            mhz=current,
            battery_celsius=int(battery[1]) / 10 if battery else None,
            cpu_celsius=max(map(float, hot)) if hot else None,
            thermal_status=int(status[1]) if status else None,
        ),
    )


@contextlib.contextmanager
def device_folder(serial: str) -> Iterator[str]:
    """Make a folder on the device for this run alone, and remove it whatever happens."""
    folder = f"{FOLDER}/dlqat_{uuid.uuid4().hex}"
    failure = None
    try:
        shell(serial, f"mkdir {folder}")
        yield folder
    except BaseException as error:
        failure = error
        raise
    finally:
        try:
            shell(serial, f"rm -rf {folder}")
        except AndroidError as error:
            why = str(failure or error).rstrip(".") or "Interrupted"
            raise AndroidError(
                f"{why}; {folder} may be left on device {serial}: remove it with "
                f"`adb -s {serial} shell rm -rf {folder}`."
            ) from failure


def push(serial: str, path: str | Path, target: str) -> None:
    """Copy a file to the device."""
    # Absolute, since adb takes a name that begins with a hyphen for an option.
    _adb("-s", serial, "push", str(Path(path).absolute()), target, timeout=10 * _SECONDS)


def shell(serial: str, command: str) -> str:
    """Return what a command of the device's shell printed; any failure is an `AndroidError`."""
    return _adb("-s", serial, "shell", command)


def launch(serial: str, folder: str, command: str, what: str, timeout: float) -> str:
    """Launch a program in the device's folder and return what it printed, errors included."""
    # The shell leaves its own process id and becomes the program, so that a launch that is given
    # up can be ended: ending adb here does not end what it started there.
    try:
        done = _run_adb(
            "-s",
            serial,
            "shell",
            f"cd {folder} && echo $$ > pid && exec {command}",
            timeout=timeout,
        )
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        with contextlib.suppress(AndroidError):
            shell(serial, f"kill -9 $(cat {folder}/pid)")
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AndroidError(
            f"Expected {what} to end within {timeout:g} seconds, but it did not: give it a longer "
            "--timeout."
        ) from None
    output = done.stdout + done.stderr
    if done.returncode == 0:
        return output
    _raise_adb_error(done)
    last = output.strip().splitlines()[-1:] or ["it printed nothing"]
    if done.returncode > 128:
        with contextlib.suppress(ValueError):  # a number that is no signal is a status
            name = signal.Signals(done.returncode - 128).name
            raise AndroidError(f"{what} was ended by {name}: {last[0]}")
    raise AndroidError(f"{what} failed with status {done.returncode}: {last[0]}")


def _adb(*arguments: str, timeout: float = _SECONDS) -> str:
    """Run adb and return what it printed; any failure is an `AndroidError`."""
    try:
        done = _run_adb(*arguments, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise AndroidError(
            f"Expected an answer from adb within {timeout:g} seconds, but got none: reconnect the "
            "device, or run `adb kill-server`."
        ) from None
    if done.returncode:
        _raise_adb_error(done)
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it printed nothing"]
        raise AndroidError(f"adb failed with status {done.returncode}: {last[0]}")
    return done.stdout


def _run_adb(*arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["adb", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            # Ctrl-C shall reach this process only: adb is still needed to clean the device.
            start_new_session=True,
        )
    except FileNotFoundError:
        raise AndroidError(
            "Expected adb on PATH, found none: install the Android SDK platform tools."
        ) from None


def _raise_adb_error(done: subprocess.CompletedProcess[str]) -> None:
    """Raise where adb itself failed, not what it ran: it says so in a fixed form."""
    for line in done.stderr.splitlines():
        message = re.match(r"(?:adb: )?error: (.*)|adb: (.*)", line)
        if message:
            raise AndroidError(f"adb failed: {message[1] or message[2]}")
