"""The comparison of the binding with a header: it has to see what differs."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[4] / "scripts" / "check_krun_header.py"
spec = importlib.util.spec_from_file_location("check_krun_header", SCRIPT)
assert spec and spec.loader
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

HEADER = """
/* int32_t krun_start_enter(bool nothing); in a comment */
#define KRUN_FS_ROOT_TAG "/dev/root"
int32_t krun_create_ctx();
int32_t krun_set_vm_config(uint32_t ctx_id, uint8_t num_vcpus, uint32_t ram_mib);
int32_t krun_set_exec(uint32_t ctx_id,
                      const char *exec_path,
                      const char *const argv[],
                      const char *const envp[]);
int32_t krun_set_workdir(uint32_t ctx_id, const char *workdir_path);
int32_t krun_add_net_tap(uint32_t ctx_id, char *name, uint8_t *const c_mac, uint32_t features, uint32_t flags);
int32_t krun_add_vsock_port2(uint32_t ctx_id, uint32_t port, const char *c_filepath, bool listen);
int32_t krun_add_virtio_console_default(uint32_t ctx_id,
#ifdef _WIN32
    void *in, void *out, void *err
#else
    int in, int out, int err
#endif
    );
int32_t krun_start_enter(uint32_t ctx_id);
"""


def test_a_header_like_the_binding_has_no_differences() -> None:
    assert check.differences(HEADER) == []


@pytest.mark.parametrize(
    ("was", "becomes", "told"),
    [
        ("uint8_t num_vcpus", "uint32_t num_vcpus", "krun_set_vm_config"),
        ("int32_t krun_start_enter(uint32_t", "int64_t krun_start_enter(uint32_t", "krun_start_enter"),
        ("const char *const envp[]", "const char *envp", "krun_set_exec"),
        ("bool listen", "int listen", "krun_add_vsock_port2"),
        ("int in, int out", "int out", "krun_add_virtio_console_default"),
        ("int32_t krun_set_workdir", "int32_t krun_set_folder", "krun_set_workdir: the header lacks it"),
        ("/dev/root", "rootfs", "KRUN_FS_ROOT_TAG"),
    ],
)
def test_each_difference_is_told(was: str, becomes: str, told: str) -> None:
    (difference,) = check.differences(HEADER.replace(was, becomes))
    assert difference.startswith(told)
