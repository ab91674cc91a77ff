"""Images from a registry, in a lab of real daemons: with pull secrets, and while the registry is down."""

import json
from pathlib import Path

from debian_registry import Registry
from lab_support import Lab, own_image, wait_for, with_image


def waiting(site: Lab, app: str) -> set[str]:
    statuses = [s for pod in site.pods("m1", app) for s in pod["status"].get("containerStatuses", [])]
    return {s["state"]["waiting"]["reason"] for s in statuses if "waiting" in s["state"]}


def add_secret(site: Lab, registry: Registry) -> None:
    server = ("--docker-server", registry.address)
    who = ("--docker-username", "user", "--docker-password", "s3cret")
    site.kubectl("m1", "create", "secret", "docker-registry", "regcred", *server, *who)


def test_pull_secrets_and_a_registry_that_goes_down(site: Lab, registry: Registry, tmp_path: Path) -> None:
    own_image(tmp_path / "app.tar", "localhost/app:1", "private")
    registry.push_layout("team/app", "1", tmp_path / "app.tar")
    image = f"{registry.address}/team/app:1"
    site.apply("m1", with_image("refused", image, 1))
    wait_for("the refusal", lambda: waiting(site, "refused") & {"ErrImagePull", "ImagePullBackOff"})
    wait_for("the back-off", lambda: waiting(site, "refused") == {"ImagePullBackOff"})
    events = json.loads(site.kubectl("m2", "get", "events", "-o", "json"))["items"]
    messages = [e["message"] for e in events if e["involvedObject"]["name"].startswith("refused-")]
    assert any("it wants credentials" in message for message in messages), messages

    add_secret(site, registry)
    secrets = [{"name": "regcred"}]
    site.apply("m1", with_image("allowed", image, imagePullSecrets=secrets))
    assert set(site.wait_running("m2", "allowed", 3).values()) == {"m0", "m1", "m2"}

    registry.stop()
    site.apply("m2", with_image("again", image, imagePullSecrets=secrets))
    site.wait_running("m0", "again", 3)
    assert waiting(site, "refused") == {"ImagePullBackOff"}
    for app in ("refused", "allowed", "again"):
        site.remove("m0", app)


def test_a_registry_that_is_down_stops_no_rollout_of_what_one_machine_has(
    site: Lab, registry: Registry, tmp_path: Path
) -> None:
    own_image(tmp_path / "lone.tar", "localhost/lone:1", "lone")
    image = f"{registry.address}/team/lone:1"
    registry.stop()
    site.image("m1", "import", tmp_path / "lone.tar", "--ref", image)
    site.apply("m0", with_image("lone", image))
    assert set(site.wait_running("m1", "lone", 3).values()) == {"m0", "m1", "m2"}
    site.remove("m0", "lone")
