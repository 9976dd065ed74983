"""The configuration: what is taken, what is refused and in which words, and that docs and example say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from proxy.config import Config, is_loopback
from proxy.config_file import ConfigError, check_config, diff, environment_names, load
from scheduler.policies import POLICIES

ENGINE = '[[engines]]\nurl = "http://127.0.0.1:8000"\n'
HASH = "ab" * 32
KEY = f'[[keys]]\nname = "k"\nsha256 = "{HASH}"\n'
SECRET = "jg-this-is-a-secret"


def read(
    folder: Path, text: str, environ: dict[str, str] | None = None, overrides: dict[str, Any] | None = None
) -> Config:
    """Load this text as joulegate.toml."""
    path = folder / "joulegate.toml"
    path.write_text(text)
    return load(path, environ or {}, overrides or {})


def problems(folder: Path, text: str, environ: dict[str, str] | None = None, **overrides: Any) -> list[str]:
    """What is wrong with this text, without the folder's name."""
    with pytest.raises(ConfigError) as error:
        read(folder, text, environ, overrides)
    return str(error.value).replace(f"{folder}/", "").splitlines()


class TestPrecedence:
    def test_defaults_need_nothing_but_an_engine(self, tmp_path: Path) -> None:
        config = read(tmp_path, ENGINE)
        assert [(engine.name, engine.url) for engine in config.engines] == [("127.0.0.1:8000", "http://127.0.0.1:8000")]
        assert (config.listen.host, config.listen.port, config.policy.name) == ("127.0.0.1", 8080, "passthrough")
        assert config.state_dir is None
        assert config.keys == ()

    def test_file_then_environment_then_command_line(self, tmp_path: Path) -> None:
        text = 'listen = { host = "::1", port = 1, control_port = 2 }\ntimeouts.idle_seconds = 1\n' + ENGINE
        environ = {"JOULEGATE_LISTEN__PORT": "11", "JOULEGATE_LISTEN__CONTROL_PORT": "12"}
        config = read(tmp_path, text, environ, {"listen": {"port": 21}})
        assert (config.listen.host, config.listen.port, config.listen.control_port) == ("::1", 21, 12)
        assert config.timeouts.idle_seconds == 1.0

    def test_no_file_at_all(self) -> None:
        config = load(None, {"JOULEGATE_ENGINES": "http://a:1, http://b:2"}, {"policy": {"name": "fifo"}})
        assert [engine.name for engine in config.engines] == ["a:1", "b:2"]
        assert config.policy.name == "fifo"

    def test_each_kind_of_value_from_the_environment(self) -> None:
        environ = {
            "JOULEGATE_ENGINES": "http://a:1",
            "JOULEGATE_STATE_DIR": "123",
            "JOULEGATE_LOG__PATH": "true",
            "JOULEGATE_LOG__PROMPTS": "true",
            "JOULEGATE_TIMEOUTS__IDLE_SECONDS": "1.5",
            "JOULEGATE_LIMITS__BODY_BYTES": "1_000",
            "JOULEGATE_POLICY__NAME": "fifo",
            "JOULEGATE_POLICY__MAX_IN_FLIGHT": "7",
        }
        config = load(None, environ, {})
        assert config.state_dir == Path("123")
        assert (config.log.path, config.log.prompts) == ("true", True)
        assert (config.timeouts.idle_seconds, config.limits.body_bytes) == (1.5, 1000)
        assert (config.policy.name, config.policy.options) == ("fifo", {"max_in_flight": 7})

    def test_an_empty_path_means_none(self, tmp_path: Path) -> None:
        """`Path("")` would be the working directory."""
        assert read(tmp_path, 'state_dir = ""\nevent_log.path = ""\n' + ENGINE).state_dir is None
        assert read(tmp_path, f'state_dir = "{tmp_path}"\n{ENGINE}', {"JOULEGATE_STATE_DIR": ""}).state_dir is None

    def test_every_variable_reaches_its_field(self) -> None:
        places = set(environment_names().values())
        for name, field in Config.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                assert {(name, key) for key in field.annotation.model_fields if key != "options"} <= places
            elif name != "keys":
                assert (name,) in places

    def test_variables_of_a_kubernetes_service_are_not_ours(self) -> None:
        environ = {
            "JOULEGATE_ENGINES": "http://a:1",
            "JOULEGATE_SERVICE_HOST": "10.0.0.1",
            "JOULEGATE_SERVICE_PORT_HTTP": "8080",
            "JOULEGATE_PORT": "tcp://10.0.0.1:8080",
            "JOULEGATE_PORT_8080_TCP_ADDR": "10.0.0.1",
        }
        assert load(None, environ, {}).listen.port == 8080
        with pytest.raises(ConfigError, match="JOULEGATE_PORT: unknown environment variable"):
            load(None, {**environ, "JOULEGATE_PORT": "9000"}, {})


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("[limits]\nbody_byte = 3\n", '2: limits.body_byte: unknown key; did you mean "body_bytes"?'),
            ("[limit]\nbody_bytes = 3\n", '1: limit: unknown key; did you mean "limits"?'),
            ("limits.body_bytes = -3\n", "1: limits.body_bytes: must be above 0, not -3"),
            ("\nlimits = { body_bytes = 0 }\n", "2: limits.body_bytes: must be above 0, not 0"),
            ("[limits]\nbody_bytes = 1.5\n", "2: limits.body_bytes: must be a whole number, not 1.5"),
            ("[limits]\nbody_bytes = true\n", "2: limits.body_bytes: must be a whole number, not true"),
            ('[limits]\nbody_bytes = "3"\n', "2: limits.body_bytes: must be a whole number, not '3'"),
            ("[limits]\nbody_bytes = 1e3\n", "2: limits.body_bytes: must be a whole number, not 1000.0"),
            ('[timeouts]\nidle_seconds = "3"\n', "2: timeouts.idle_seconds: must be a number, not '3'"),
            ("[timeouts]\nidle_seconds = inf\n", "2: timeouts.idle_seconds: must be a finite number, not inf"),
            ("[timeouts]\nidle_seconds = nan\n", "2: timeouts.idle_seconds: must be a finite number, not nan"),
            ("[timeouts]\nidle_seconds = 1e9\n", "2: timeouts.idle_seconds: must be at most 1e+08, not 1000000000.0"),
            ("[log]\nprompts = 1\n", "2: log.prompts: must be true or false, not 1"),
            ("[log]\npath = 1\n", "2: log.path: must be text, not 1"),
            ("state_dir = 1\n", "1: state_dir: must be text, not 1"),
            ("[listen]\nport = 65536\n", "2: listen.port: must be at most 65535, not 65536"),
            ("listen = 3\n", "1: listen: must be a table, not a number"),
            ("limits = 2000-01-01\n", "1: limits: must be a table, not a date or time"),
            (
                '[policy]\nname = "fifi"\n',
                f"2: policy.name: unknown policy 'fifi'; did you mean \"fifo\"? there are {', '.join(POLICIES)}",
            ),
            ('[policy]\nname = "x"\n', f"2: policy.name: unknown policy 'x'; there are {', '.join(POLICIES)}"),
            (
                '[policy]\nname = "fifo"\nmax_in_fligt = 3\n',
                '3: policy.max_in_fligt: unknown option; did you mean "max_in_flight"?',
            ),
            (
                '[policy]\nname = "fifo"\nmax_in_flight = 0\n',
                "3: policy.max_in_flight: must be a whole number from 1 on, not 0",
            ),
            ("[tracing]\nsample_ratio = 1.1\n", "2: tracing.sample_ratio: must be at most 1, not 1.1"),
            (
                '[tracing]\notlp_endpoint = "host:4318"\n',
                "2: tracing.otlp_endpoint: must be like http://host:4318, or empty",
            ),
            (
                '[policy]\nname = "joule"\nmisses_share = 0\n',
                "3: policy.misses_share: must be a number above 0 below 1, not 0",
            ),
            (f"[[keys]]\nname = 'a'\nweight = 0\nsha256 = '{'0' * 64}'\n", "3: keys[0].weight: must be above 0, not 0"),
            (
                f"[[keys]]\nname = 'a'\nweight = -2.5\nsha256 = '{'0' * 64}'\n",
                "3: keys[0].weight: must be above 0, not -2.5",
            ),
            (
                f"[[keys]]\nname = 'a'\nweight = nan\nsha256 = '{'0' * 64}'\n",
                "3: keys[0].weight: must be at most 1000, not nan",
            ),
            (
                "[listen]\nport = 8081\n",
                "1: listen.control_port: must differ from listen.port, both are 8081",
            ),
        ],
    )
    def test_a_wrong_value_is_named_with_its_line(self, tmp_path: Path, text: str, expected: str) -> None:
        assert problems(tmp_path, text + ENGINE) == [f"joulegate.toml:{expected}"]

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("http://a:1/v1", "must be without /v1, which clients send: http://a:1"),
            ("http://a/x/v1/", "must be without /v1, which clients send: http://a/x"),
            ("ftp://a", "must be like http://host:8000"),
            ("a:8000", "must be like http://host:8000"),
            ("", "must be like http://host:8000"),
            ("http://", "must be like http://host:8000"),
            ("http://a b", "must be like http://host:8000, without blanks"),
            ("http://a\\nb", "must be like http://host:8000, without blanks"),
            ("http://ä", "must be like http://host:8000, without blanks"),
            ("http://a:99999", "must have a port from 1 to 65535"),
            ("http://a:0", "must have a port from 1 to 65535"),
            ("http://a:x", "must have a port from 1 to 65535"),
            (f"http://user:{SECRET}@a", "must have no user, query or fragment; a key goes into api_key"),
            ("http://a?x=1", "must have no user, query or fragment; a key goes into api_key"),
        ],
    )
    def test_an_url_that_cannot_be_meant(self, tmp_path: Path, url: str, expected: str) -> None:
        text = f'[[engines]]\nname = "x"\nurl = "{url}"\n'
        assert problems(tmp_path, text) == [f"joulegate.toml:3: engines[0].url: {expected}"]

    @pytest.mark.parametrize(
        ("url", "kept", "name"),
        [
            ("http://a:1/", "http://a:1", "a:1"),
            ("https://a/prefix/", "https://a/prefix", "a:443"),
            ("http://a", "http://a", "a:80"),
            ("http://[::1]:8000", "http://[::1]:8000", "[::1]:8000"),
        ],
    )
    def test_urls_that_are_taken(self, tmp_path: Path, url: str, kept: str, name: str) -> None:
        (engine,) = read(tmp_path, f'[[engines]]\nurl = "{url}"\n').engines
        assert (engine.url, engine.name) == (kept, name)

    def test_an_engine_that_could_never_be_parked(self, tmp_path: Path) -> None:
        engine = '[[engines]]\nurl = "http://{}"\npark = true\n'
        what = "would never be: of 1 engines, 1 of each model stay awake (parking.awake_least)"
        way = "add an engine, or leave park out"
        assert problems(tmp_path, engine.format("a")) == [f"joulegate.toml:3: engines[0].park: {what}; {way}"]
        both = engine.format("a") + engine.format("b")
        (tmp_path / "both.toml").write_text(both)
        assert [each.park for each in load(tmp_path / "both.toml", {}, {}).engines] == [True, True]
        assert len(problems(tmp_path, both + "[parking]\nawake_least = 2\n")) == 2
        wrong = problems(tmp_path, both + '[parking]\nat_exit = "stay"\nwake_tries = 0\n')
        assert sorted(line.partition(" ")[0] for line in wrong) == ["joulegate.toml:8:", "joulegate.toml:9:"]

    def test_no_engine(self, tmp_path: Path) -> None:
        expected = "engines: at least one [[engines]] with a url is needed"
        assert problems(tmp_path, "") == [f"joulegate.toml: {expected}"]
        assert problems(tmp_path, "\nengines = []") == [f"joulegate.toml:2: {expected}"]
        assert problems(tmp_path, "", {"JOULEGATE_ENGINES": ","}) == [f"JOULEGATE_ENGINES: {expected}"]
        assert problems(tmp_path, 'engines = "http://a"') == [
            "joulegate.toml:1: engines: must be an array of tables, not text"
        ]

    def test_all_problems_at_once(self, tmp_path: Path) -> None:
        text = "[limits]\nbody_byte = 3\nqueue_calls = 0\n[[engines]]\n[[engines]]\nurl = 3\n"
        found = problems(tmp_path, text, {"JOULEGATE_LISTEN__PROT": "1"}, listen={"port": -1})
        assert sorted(found) == [
            'JOULEGATE_LISTEN__PROT: unknown environment variable; did you mean "JOULEGATE_LISTEN__PORT"?',
            "command line: listen.port: must be at least 0, not -1",
            'joulegate.toml:2: limits.body_byte: unknown key; did you mean "body_bytes"?',
            "joulegate.toml:3: limits.queue_calls: must be above 0, not 0",
            "joulegate.toml:4: engines[0].url: is missing",
            "joulegate.toml:6: engines[1].url: must be text, not 3",
        ]

    def test_an_unknown_key_does_not_hide_what_does_not_fit_together(self, tmp_path: Path) -> None:
        text = f'listen.host = "0.0.0.0"\n{ENGINE}[[key]]\nname = "k"\n'
        unknown, open_to_all = problems(tmp_path, text)
        assert unknown == 'joulegate.toml:4: key: unknown key; did you mean "keys"?'
        assert open_to_all.startswith("joulegate.toml:1: listen.host: '0.0.0.0' is not loopback")

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a = 1\nb = = 2\n", r"joulegate\.toml:2:5: is not TOML: Invalid value"),
            ("a = 1\na = 2\n", r"joulegate\.toml:2:6: is not TOML: Cannot overwrite a value"),
            (
                "a = 1\nb = [1,\n\n",
                r"joulegate\.toml:3: is not TOML: Unclosed array|joulegate\.toml:3: .*Invalid value",
            ),
            ("a = " + "[" * 5000, r"joulegate\.toml: is nested too deeply"),
        ],
    )
    def test_what_is_not_toml(self, tmp_path: Path, text: str, expected: str) -> None:
        (found,) = problems(tmp_path, text)
        assert re.fullmatch(expected, found)

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: No such file or directory"):
            load(tmp_path / "none.toml", {}, {})
        with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
            load(tmp_path, {}, {})
        (tmp_path / "latin.toml").write_bytes(b'a = "\xe4"')
        with pytest.raises(ConfigError, match=r"latin\.toml: is not UTF-8 \(byte 5\)"):
            load(tmp_path / "latin.toml", {}, {})

    def test_a_wrong_value_of_the_environment_names_the_variable(self, tmp_path: Path) -> None:
        text = "limits.url_bytes = 5\n" + ENGINE
        assert problems(tmp_path, text, {"JOULEGATE_LIMITS__URL_BYTES": "many"}) == [
            "JOULEGATE_LIMITS__URL_BYTES: limits.url_bytes: must be a whole number, not 'many'"
        ]
        assert problems(tmp_path, "listen = 3\n" + ENGINE, {"JOULEGATE_LISTEN__PORT": "1"}) == [
            "joulegate.toml:1: listen: must be a table, not a number"
        ]


class TestTogether:
    @pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.0.2.1", "gateway.example"])
    def test_without_keys_it_listens_on_loopback_only_and_says_why(self, tmp_path: Path, host: str) -> None:
        (found,) = problems(tmp_path, f'listen.host = "{host}"\n{ENGINE}')
        assert "without keys the gateway listens on loopback only, since anyone who reaches the port" in found
        assert "joulegate hash-key" in found
        assert read(tmp_path, f'listen.host = "{host}"\n{ENGINE}{KEY}').listen.host == host

    def test_a_public_control_plane_is_an_explicit_choice(self, tmp_path: Path) -> None:
        text = f'[listen]\ncontrol_host = "0.0.0.0"\n@\n{ENGINE}{KEY}'
        (found,) = problems(tmp_path, text.replace("@", ""))
        assert found.startswith("joulegate.toml:2: listen.control_host:")
        assert "listen.control_public = true" in found
        assert read(tmp_path, text.replace("@", "control_public = true")).listen.control_public

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_loopback(self, host: str) -> None:
        assert is_loopback(host)

    def test_names_and_hashes_are_there_once(self, tmp_path: Path) -> None:
        text = ENGINE + ENGINE + KEY + KEY.replace('"k"', '"l"').replace("ab", "AB") + KEY.replace("ab", "cd")
        assert problems(tmp_path, text) == [
            "joulegate.toml:3: engines[1].name: '127.0.0.1:8000' stands in engines[0] already; each needs its own",
            "joulegate.toml:12: keys[2].name: 'k' stands in keys[0] already; each needs its own",
            "joulegate.toml:10: keys[1].sha256: the same stands in keys[0] already; each needs its own",
        ]

    def test_an_engines_key_from_the_environment_must_be_there(self, tmp_path: Path) -> None:
        text = ENGINE + 'api_key_env = "VLLM_KEY"\n'
        place = "joulegate.toml:3: engines[0].api_key_env: the environment variable VLLM_KEY"
        assert problems(tmp_path, text) == [f"{place} is not set"]
        assert problems(tmp_path, text, {"VLLM_KEY": "a\nb"}) == [f"{place} is not visible ASCII"]
        assert read(tmp_path, text, {"VLLM_KEY": "a"}).engines[0].api_key_env == "VLLM_KEY"
        assert problems(tmp_path, text + 'api_key = "a"\n', {"VLLM_KEY": "a"}) == [
            "joulegate.toml:3: engines[0].api_key_env: stands beside api_key; remove one of them"
        ]

    def test_no_key_of_the_name_that_means_no_key(self, tmp_path: Path) -> None:
        assert problems(tmp_path, ENGINE + KEY.replace('"k"', '"-"')) == [
            "joulegate.toml:4: keys[0].name: must not be -, which stands for no key"
        ]


class TestSecrets:
    @pytest.mark.parametrize(
        "text",
        [
            f'[[keys]]\nname = "k"\nsha256 = "{SECRET}"\n',
            f'[[keys]]\nname = "k"\nkey = "{SECRET}"\n',
            f'keys = "{SECRET}"\n',
            f'keys = ["{SECRET}"]\n',
            f'[[engines]]\nurl = "http://a:1"\napi_key = ["{SECRET}"]\n',
            f'[[engines]]\nurl = "http://a:1"\napi_key = "{SECRET} "\n',
            f'[[engines]]\nurl = "http://u:{SECRET}@a:1"\n',
            f'[[engines]]\nurl = "http://a:1"\napikey = "{SECRET}"\n',
        ],
    )
    def test_no_error_shows_one(self, tmp_path: Path, text: str) -> None:
        found = problems(tmp_path, text if "engines" in text else text + ENGINE)
        assert found
        assert SECRET not in "\n".join(found)

    def test_not_even_one_of_digits(self, tmp_path: Path) -> None:
        (found,) = problems(tmp_path, f"{ENGINE}api_key = 987654321\n")
        assert found == "joulegate.toml:3: engines[0].api_key: must be text, not a number"

    def test_no_repr_shows_one(self, tmp_path: Path) -> None:
        config = read(tmp_path, f'{ENGINE}api_key = "{SECRET}"\n{KEY}')
        assert config.engines[0].key() == SECRET
        for text in (repr(config), str(config), config.model_dump_json()):
            assert SECRET not in text
            assert HASH not in text


class TestReload:
    def test_what_needs_a_restart_is_named(self, tmp_path: Path) -> None:
        old = read(tmp_path, ENGINE)
        new = read(tmp_path, f'listen.port = 1\nlog.path = "x"\nstate_dir = "y"\nlimits.body_bytes = 3\n{ENGINE}{KEY}')
        assert diff(old, new) == ["listen.port", "log.path", "state_dir"]
        assert diff(old, old) == []

    def test_a_loaded_configuration_does_not_change(self, tmp_path: Path) -> None:
        config = read(tmp_path, ENGINE)
        with pytest.raises(ValueError, match="frozen"):
            config.limits.body_bytes = 3  # type: ignore[misc]


class TestCheckConfig:
    def test_a_good_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "joulegate.toml"
        path.write_text(ENGINE + KEY)
        assert check_config(path, {}) == 0
        output = capsys.readouterr().out
        for expected in ("OK", "127.0.0.1:8080", "passthrough", "1 key", "http://127.0.0.1:8000"):
            assert expected in output

    def test_a_bad_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "joulegate.toml"
        path.write_text("limit = 3")
        assert check_config(path, {}) == 2
        assert f'{path}:1: limit: unknown key; did you mean "limits"?' in capsys.readouterr().err
