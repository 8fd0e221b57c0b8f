#!/usr/bin/env python3
"""judge.py [FILE]: has cloud-init's own code process each text of a table.

FILE (default: stdin) is a JSON list of objects with "name", "kind" ("user-data" or
"network-config") and "text". The output is a JSON object: by name, "used", or
"dropped: " and the reason if cloud-init would warn about the text and ignore it or a part
of it, or would fail. Nothing of a text is executed or downloaded. The program needs the
Debian package cloud-init and was written for its version 22.4.
"""
import json
import logging
import sys
import tempfile
import types

from cloudinit import handlers, helpers, net, user_data, util
from cloudinit.handlers.cloud_config import CloudConfigPartHandler
from cloudinit.handlers.jinja_template import JinjaTemplatePartHandler
from cloudinit.net import network_state, networkd
from cloudinit.url_helper import UrlError

INSTANCE_DATA = {"v1": {"local_hostname": "web-1", "instance_id": "i-1", "region": None}, "ds": {}}


class Warnings(logging.Handler):
    """Collects what cloud-init logs at level warning and above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        # Values of a template are known in a guest only.
        if "Could not render jinja template variables" not in record.getMessage():
            self.messages.append(record.getMessage())


class Recorder(handlers.Handler):
    """Stands for the handlers that would execute a part."""

    prefixes = ["#!", "#cloud-boothook", "text/x-shellscript-per-boot",
                "text/x-shellscript-per-instance", "text/x-shellscript-per-once"]

    def __init__(self):
        super().__init__("always", version=3)
        self.parts = 0

    def handle_part(self, data, ctype, filename, payload, frequency, headers):
        if ctype not in handlers.CONTENT_SIGNALS:
            self.parts += 1


class Response:
    contents = b"#cloud-config\n{}\n"
    code = 200

    def ok(self):
        return True


def fetch(url, **_):
    if not url.lower().startswith(("http://", "https://", "ftp://", "file://", "/")):
        raise UrlError("no scheme in %r" % url)
    return Response()


def user(blob, paths):
    config, recorder = CloudConfigPartHandler(paths), Recorder()
    jinja = JinjaTemplatePartHandler(paths, sub_handlers=[config, recorder])
    by_type = {t: h for h in (config, recorder, jinja) for t in h.list_types()}
    parts = {"n": 0}

    def callback(data, filename, payload, headers):
        parts["n"] += 1
        if headers["Content-Type"] in handlers.PART_CONTENT_TYPES:
            # A part handler adds content types of its own, so any type may follow.
            data["excluded"] = Anything(by_type)
            return
        handlers.walker_callback(data, filename, payload, headers)

    message = user_data.UserDataProcessor(paths).process(blob)
    data = {"handlers": by_type, "data": None, "frequency": "once-per-instance", "excluded": []}
    for handler in by_type.values():
        handlers.call_begin(handler, None, "once-per-instance")
    handlers.walk(message, callback, data)
    for handler in by_type.values():
        handlers.call_end(handler, None, "once-per-instance")
    if parts["n"] == 0:
        raise ValueError("no part was found")


class Anything:
    def __init__(self, handled):
        self.handled = handled

    def __contains__(self, content_type):
        return content_type not in self.handled


def network(blob):
    config = util.load_yaml(blob)
    if config is None:
        raise ValueError("no configuration was found")
    if config.get("network"):
        config = config["network"]
    if net.is_disabled_cfg(config):
        return
    net.extract_physdevs(config)
    for entry in list(config.get("ethernets", {}).values()) + list(config.get("config", [])):
        mac = entry.get("match", {}).get("macaddress") or entry.get("mac_address")
        if mac:
            mac.lower()
    state = network_state.parse_net_config_data(config, renderer=networkd.Renderer())
    with tempfile.TemporaryDirectory() as root:
        networkd.Renderer()._render_content(state)


def verdict(text, paths):
    warnings = Warnings()
    log = logging.getLogger()
    log.addHandler(warnings)
    try:
        if text["kind"] == "user-data":
            user(text["text"].encode(), paths)
        else:
            network(text["text"].encode())
    except Exception as e:  # cloud-init would stop here
        warnings.messages.append("%s: %s" % (type(e).__name__, e))
    finally:
        log.removeHandler(warnings)
    if warnings.messages:
        return "dropped: " + " ".join(warnings.messages[0].split())[:200]
    return "used"


def main():
    user_data.read_file_or_url = fetch
    with open(sys.argv[1]) if len(sys.argv) > 1 else sys.stdin as f:
        texts = json.load(f)
    result = {}
    with tempfile.TemporaryDirectory() as directory:
        paths = helpers.Paths({"cloud_dir": directory, "run_dir": directory})
        paths.datasource = types.SimpleNamespace(get_instance_id=lambda: "i-1")
        for name in ("instance_data_sensitive", "instance_data"):
            with open(paths.get_runpath(name), "w") as f:
                json.dump(INSTANCE_DATA, f)
        for text in texts:
            result[text["name"]] = verdict(text, paths)
    json.dump(result, sys.stdout, indent=1, ensure_ascii=True)
    print()


if __name__ == "__main__":
    main()
