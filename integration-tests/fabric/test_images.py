"""Images from machine to machine, in a lab of real daemons: one copy serves all."""

import json
from pathlib import Path

from lab_support import BIN, Lab, own_image, run, wait_for, with_image


def test_an_image_that_one_machine_has_runs_on_all(lab: Lab, tmp_path: Path) -> None:
    own_image(tmp_path / "solo.tar", "localhost/solo:1", "solo")
    said = lab.image("m0", "import", str(tmp_path / "solo.tar"))
    digest = said.split()[-1]
    assert "solo" not in lab.image("m1", "ls")
    lab.apply("m1", with_image("solo", "localhost/solo:1"))
    spread = lab.wait_running("m2", "solo", 3)
    assert set(spread.values()) == {"m0", "m1", "m2"}
    for machine in ("m1", "m2"):
        assert digest[:19] in lab.image(machine, "ls")
    (pod, *_) = [name for name, machine in spread.items() if machine == "m2"]
    assert lab.kubectl("m0", "exec", pod, "--", "cat", "/message") == "solo"
    events = json.loads(lab.kubectl("m0", "get", "events", "-o", "json"))["items"]
    of_pod = {e["reason"]: e["message"] for e in events if e["involvedObject"]["name"] == pod}
    assert of_pod["Pulling"] == 'Pulling image "localhost/solo:1"'
    assert of_pod["Pulled"].startswith('Successfully pulled image "localhost/solo:1" in ')
    lab.remove("m0", "solo")


def test_a_pull_by_hand_asks_the_daemon_and_so_the_other_machines(lab: Lab, tmp_path: Path) -> None:
    own_image(tmp_path / "hand.tar", "localhost/hand:1", "hand")
    digest = lab.image("m0", "import", tmp_path / "hand.tar").split()[-1]
    run_dir = Path("/var/lib/magik-lab", lab.name, "m1/run")
    said = lab.image("m1", "pull", "localhost/hand:1", "--run-dir", run_dir)
    assert "the daemon pulls" in said and "from machine " in said
    assert said.splitlines()[-1] == f"localhost/hand:1 {digest}"
    words = ("pull", "localhost/hand:1", "--run-dir", run_dir, "--state-dir", tmp_path / "state")
    other = run(BIN / "machineplane", "image", *words, check=False)
    assert "the daemon here keeps its images in" in other and "is not on this machine" in other


def test_by_digest_also_after_the_first_machine_has_forgotten_it(lab: Lab, tmp_path: Path) -> None:
    own_image(tmp_path / "chain.tar", "registry.invalid/chain:1", "chain")
    digest = lab.image("m0", "import", str(tmp_path / "chain.tar")).split()[-1]
    pinned = f"registry.invalid/chain@{digest}"
    lab.apply("m0", with_image("chain", pinned))
    lab.wait_running("m1", "chain", 3)
    lab.remove("m0", "chain")


def test_a_policy_of_never_is_said_on_the_pod(lab: Lab) -> None:
    wanted = with_image("never", "localhost/absent:1")
    wanted["spec"]["replicas"] = 1  # type: ignore[index]
    wanted["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Never"  # type: ignore[index]
    lab.apply("m0", wanted)

    def reasons() -> list[str]:
        statuses = [s for p in lab.pods("m1", "never") for s in p["status"].get("containerStatuses", [])]
        return [s["state"]["waiting"]["reason"] for s in statuses if "waiting" in s["state"]]

    wait_for("the state", lambda: reasons() == ["ErrImageNeverPull"])
    assert "ErrImageNeverPull" in lab.kubectl("m2", "get", "pods")
    lab.remove("m0", "never")
