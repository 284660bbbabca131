"""Controls of who may come in, and of the API."""

from tests.sabotage.control import Control

SERVER, _SERVER = "server.py", "test_server.py::test_"
CONNECTION = "backends/remote/connection.py"
_API_LIMITS = "api/test_limits.py::test_"

CONTROLS = (
    # --- who may come in ---
    Control(
        *("who may come in", "with logins, nobody else does", SERVER),
        *("auth=list(logins) or None,", "auth=None,"),
        _SERVER + "with_logins_nobody_else_sees_the_page",
    ),
    Control(
        *("who may come in", "a public address needs a login or a clear word", SERVER),
        *("    if not no_auth:\n", "    if False:\n"),
        _SERVER + "nobody_may_come_in_from_outside_unless_somebody_says_so",
    ),
    Control(
        *("who may come in", "only the operator changes models", SERVER),
        *(
            "may_change=lambda owner: is_local or owner == operator,",
            "may_change=lambda owner: True,",
        ),
        _SERVER + "who_sits_here_or_comes_first_changes_models",
    ),
    Control(
        *("who may come in", "with keys and logins, gradio's own routes need a login", SERVER),
        *(
            "return any(connection.cookies.get(name) in page.tokens for name in names)",
            "return True",
        ),
        "api/test_keys.py::test_a_login_opens_the_page_and_not_the_api",
    ),
    # --- the API ---
    Control(
        *("the API", "with keys, every route needs one", "api/keys.py"),
        *("        return self._is_guest(HTTPConnection(scope))", "        return True"),
        "api/test_keys.py::test_every_route_of_the_app_and_the_page_needs_a_key",
    ),
    Control(
        *("the API", "a wrong key opens nothing", "api/keys.py"),
        *("if any(fits) else None", "if True else None"),
        "api/test_keys.py::test_every_route_of_the_app_and_the_page_needs_a_key",
    ),
    Control(
        *("the API", "with logins and no keys it is closed", SERVER),
        *("is_closed_without_keys=bool(logins),", "is_closed_without_keys=False,"),
        "api/test_keys.py::test_logins_without_keys_close_the_api",
    ),
    Control(
        *("the API", "keys that can be guessed are refused", "api/keys.py"),
        *("MIN_KEY_CHARS = 16", "MIN_KEY_CHARS = 1"),
        "api/test_keys.py::test_keys_that_would_protect_nothing_are_refused",
    ),
    Control(
        *("the API", "each key has caches of its own", "api/keys.py"),
        *('return f"key {digest.hex()[:32]}" if', 'return "key" if'),
        "api/test_keys.py::test_each_key_has_caches_of_its_own_that_no_client_can_name",
    ),
    Control(
        *("the API", "a caller's requests a minute are bounded", "api/limits.py"),
        *("        if len(times) >= most:", "        if False:"),
        "api/test_limits.py::test_one_caller_may_send_so_many_a_minute_and_others_still_can",
    ),
    Control(
        *("the API", "one caller cannot take every place", "api/limits.py"),
        *("if self._at_once[caller] >= limits.requests_at_once_per_caller:", "if False:"),
        "api/test_limits.py::test_one_caller_cannot_take_every_place",
    ),
    Control(
        *("the API", "requests at once are bounded", "api/limits.py"),
        *("if len(self._visits) >= limits.requests_at_once:", "if False:"),
        "api/test_limits.py::test_one_caller_cannot_take_every_place",
    ),
    Control(
        *("the API", "a body is counted while it comes in", "api/serving.py"),
        *("                if len(body) > limits.body_bytes:", "                if False:"),
        "api/test_limits.py::test_a_body_is_counted_while_it_comes_in",
    ),
    Control(
        *("the API", "pictures of a request are counted", "api/conversations.py"),
        *("    if len(sent) > limits.pictures:", "    if False:"),
        "api/test_limits.py::test_too_much_in_one_request_is_told_with_its_limit",
    ),
    Control(
        *("the API", "only JSON is read, which no form of another site sends", "api/serving.py"),
        *('    if kind != "application/json":', "    if False:"),
        "api/test_limits.py::test_only_plain_json_is_accepted",
    ),
    Control(
        *("the API", "unexpected errors are told in our words", "api/failures.py"),
        *(
            'message = "Something went wrong inside the server; its log has the details."',
            "message = str(error)",
        ),
        "api/test_openai_client.py::test_an_error_of_the_model_is_told_in_its_words_or_ours",
    ),
    Control(
        *("the API", "unknown fields are refused", "api/fields.py"),
        *(
            '        raise PydanticCustomError("unknown_parameter"',
            '        return\n        raise PydanticCustomError("unknown_parameter"',
        ),
        "api/test_requests.py::test_a_wrong_field_is_named",
    ),
    Control(
        *("the API", "a lost client's answer ends", "api/choices.py"),
        *("        self.end()", "        pass"),
        "api/test_lost_clients.py::test_a_closed_socket_ends_the_answer",
    ),
    Control(
        *(
            "the API",
            "pictures are fetched only where the operator has named a host",
            "api/pictures.py",
        ),
        *(
            "    if remote is not None and is_remote:",
            '    if is_remote and (remote := RemotePictures(["pictures.example.com"])):',
        ),
        "api/test_remote_pictures.py::"
        "test_a_picture_is_fetched_from_a_host_that_is_named_and_from_no_other",
    ),
    Control(
        *("the API", "a body has a most of seconds to arrive", "api/serving.py"),
        *("asyncio.timeout(limits.body_sec)", "asyncio.timeout(None)"),
        _API_LIMITS + "a_body_that_does_not_arrive_is_given_up",
    ),
    Control(
        *("the API", "who does not read an answer is given up", "api/serving.py"),
        *("asyncio.timeout(self._slow_reader_sec)", "asyncio.timeout(None)"),
        "api/test_lost_clients.py::test_a_reader_that_never_reads_is_given_up",
    ),
    Control(
        *("the API", "a model that answers nobody is told at once", "api/serving.py"),
        *("            progress.check(backend, api.limits.stalled_sec)", "            pass"),
        "faults/test_stalls.py::test_a_model_whose_thread_dies_leaves_nobody_waiting",
    ),
    Control(
        *("the API", "a model that stands still is not called ready", "api/progress.py"),
        *("if activity.still_sec > stalled_sec:", "if False:"),
        "api/test_health_and_metrics.py::test_ready_means_that_the_engine_makes_progress",
    ),
    Control(
        *("the API", "messages are counted", "api/conversations.py"),
        *("    if len(turns) > limits.messages:", "    if False:"),
        _API_LIMITS + "too_much_in_one_request_is_told_with_its_limit",
    ),
    Control(
        *("the API", "choices are counted", "api/chat_completions.py"),
        *("    if count > limits.choices:", "    if False:"),
        _API_LIMITS + "more_work_than_the_limits_allow_is_told_with_its_field",
    ),
    Control(
        *("the API", "an answer has a most of tokens", "api/sampling.py"),
        *("    if asked > limits.answer_tokens:", "    if False:"),
        _API_LIMITS + "more_work_than_the_limits_allow_is_told_with_its_field",
    ),
    Control(
        *("the API", "a schema has a most of bytes", "api/sampling.py"),
        *("    if len(json.dumps(asked)) > LARGEST_SCHEMA_BYTES:", "    if False:"),
        _API_LIMITS + "more_work_than_the_limits_allow_is_told_with_its_field",
    ),
    Control(
        *("the API", "a row of nonsense fails alone", "engine/decoding.py"),
        *("        if not math.isfinite(predicted.peaks[row]):", "        if False:"),
        "faults/test_nonsense.py::test_what_is_no_number_fails_one_answer_of_a_batch",
    ),
    Control(
        *("the API", "nonsense is not kept in a cache", "engine/failures.py"),
        *(
            "isinstance(error, NotANumberError) or is_out_of_memory(error)",
            "is_out_of_memory(error)",
        ),
        "faults/test_nonsense.py::test_a_question_that_gave_nonsense_once_is_computed_anew",
    ),
    Control(
        *("the API", "a GPU that is lost ends the engine", "engine/engine.py"),
        *("                raise  # out of the loop", "                pass  # out of the loop"),
        "faults/test_lost_device.py::test_a_lost_device_ends_the_engine_and_everybody_is_told",
    ),
    Control(
        *("the API", "pictures are decoded in workers without a page, too", "server.py"),
        *(
            "        decode_in_workers()  # as the page does: strangers send pictures",
            "        pass",
        ),
        "test_server.py::test_an_api_without_a_page_decodes_in_workers",
    ),
    Control(
        *("the API", "pictures are fetched from the hosts that are named", "cli/serve.py"),
        *("remote_pictures=remote,", "remote_pictures=None,"),
        "cli/test_serve.py::test_no_host_s_pictures_are_fetched_but_of_those_that_are_named",
    ),
    Control(
        *("the API", "a key is compared in constant time", "api/keys.py"),
        *("secrets.compare_digest(digest, known)", "digest == known"),
        "api/test_keys.py::test_every_key_is_compared_in_constant_time",
    ),
    Control(
        *("the API", "a server ends whose engine has died", "server.py"),
        *(
            "if isinstance(backend, ReportsActivity) and backend.activity.failed:",
            "if False:",
        ),
        "faults/test_engine_death.py::test_a_server_whose_engine_dies_ends_and_says_so",
    ),
    Control(
        *("the API", "a connection has to come to its request", "connections.py"),
        *("if waited and self._waits and self.cycle is last:", "if False:"),
        "test_connections.py::test_a_socket_is_closed_that_does_not_come_to_its_request",
    ),
    # --- other servers ---
    Control(
        *("other servers", "their addresses and words reach no client", "errors.py"),
        *("    return error.public", "    return str(error)"),
        "api/test_remote_engines.py::test_neither_its_address_nor_its_words_reach_a_client",
    ),
    Control(
        *("other servers", "it is not ready while none of them is up", "backends/remote/pool.py"),
        *("return not all(server.is_down for server in self.servers)", "return True"),
        "api/test_remote_engines.py::test_it_is_ready_while_any_engine_is_up",
    ),
    Control(
        *("other servers", "no proxy of the environment is asked", CONNECTION),
        *("trust_env=False,", "trust_env=True,"),
        "backends/remote/test_probing.py::test_a_proxy_of_the_environment_is_not_asked",
    ),
    Control(
        *("other servers", "redirects are not followed", CONNECTION),
        *("follow_redirects=False,", "follow_redirects=True,"),
        "backends/remote/test_probing.py::test_a_redirect_is_not_followed",
    ),
)
