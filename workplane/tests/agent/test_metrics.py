"""The text that Prometheus reads."""

from magik_mesh import Stats
from workplane.metrics import Family, counter, exposition, gauge, mesh_metrics, probe_metrics


def test_families_are_written_in_the_text_format() -> None:
    labels = {"app": 'a "b"\\c\nd', "x": "y"}
    families = (
        gauge("ready", "Whether.", True),
        counter("calls", "Of \\ this\nnode.", 12_345_678),
        Family("load", "gauge", "Two.", ((labels, 0.25), ({}, 3))),
    )
    assert exposition([lambda: families]) == (
        "# HELP magik_agent_ready Whether.\n"
        "# TYPE magik_agent_ready gauge\n"
        "magik_agent_ready 1\n"
        "# HELP magik_agent_calls_total Of \\\\ this\\nnode.\n"
        "# TYPE magik_agent_calls_total counter\n"
        "magik_agent_calls_total 12345678\n"
        "# HELP magik_agent_load Two.\n"
        "# TYPE magik_agent_load gauge\n"
        'magik_agent_load{app="a \\"b\\"\\\\c\\nd",x="y"} 0.25\n'
        "magik_agent_load 3\n"
    )


def test_sources_are_asked_each_time() -> None:
    stats = Stats()

    def text() -> str:
        return exposition([lambda: mesh_metrics((), stats)])

    assert "magik_agent_mesh_calls_served_total 0\n" in text()
    stats.calls_served += 2
    assert "magik_agent_mesh_calls_served_total 2\n" in text()


def test_probes_are_counted_by_their_result() -> None:
    text = exposition([lambda: probe_metrics({("app", "readiness", True): 3, ("app", "liveness", False): 1})])
    assert 'probes_total{container="app",probe="liveness",result="failure"} 1\n' in text
    assert 'probes_total{container="app",probe="readiness",result="success"} 3\n' in text
