"""The controls, what takes each out, and the test that must then fail: a table for `run`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Control:
    """In `file` of the package, `old` (which stands there once) becomes `new`: it is taken out.

    `threat` is the row of docs/security.md, `test` a node id below tests/. Where it `hangs`, the
    test notices by never coming to an end.
    """

    threat: str
    says: str
    file: str
    old: str
    new: str
    test: str
    hangs: bool = False


DECODING, PROCESS, WORKERS = "picture_decoding.py", "picture_process.py", "picture_workers.py"
REMOTE, SERVER, GGUF = "remote_pictures.py", "server.py", "loading/gguf_header.py"
_LIMITS, _REFUSALS = "test_picture_limits.py::test_", "test_picture_refusals.py::test_"
_PIXELS, _WORKERS = "test_picture_decoding.py::test_", "test_picture_workers.py::test_"
_REMOTE, _SERVER = "test_remote_pictures.py::test_", "test_server.py::test_"
_DIES = _WORKERS + "a_picture_that_takes_its_worker_along_is_refused_and_the_next_one_works"
DCP, _MEGATRON = "conversion/dcp_reader.py", "conversion/test_megatron.py::test_"
_HEADER = "loading/test_gguf_header.py::test_"

CONTROLS = (
    # --- bombs ---
    Control(
        *("bombs", "files have a most of bytes", DECODING),
        *("if size > limits.max_bytes:", "if False:"),
        _LIMITS + "bytes_beyond_the_limit_are_refused",
    ),
    Control(
        *("bombs", "pictures have a most of pixels, counted before decoding", DECODING),
        *("if width * height > limits.max_pixels:", "if False:"),
        _LIMITS + "a_pixel_bomb_is_refused_by_its_header",
    ),
    Control(
        *("bombs", "sides have a most of pixels", DECODING),
        *("if max(width, height) > limits.max_side:", "if False:"),
        _LIMITS + "a_side_beyond_the_limit_is_refused",
    ),
    Control(
        *("bombs", "frames are counted", DECODING),
        *("if frames > limits.max_frames:", "if False:"),
        _LIMITS + "too_many_frames_are_refused",
    ),
    Control(
        *("bombs", "scans of a JPEG are counted", DECODING),
        *('if kind == "JPEG" and _jpeg_scans', 'if kind == "none" and _jpeg_scans'),
        _LIMITS + "a_jpeg_of_very_many_scans_is_refused",
    ),
    Control(
        *("bombs", "comments of a GIF are bounded", DECODING),
        *("if self.in_header and self.tell() > MIB:", "if False:"),
        _LIMITS + "a_gif_with_endless_comments_is_refused",
    ),
    Control(
        *("bombs", "a WebP's canvas is checked before it is allocated", DECODING),
        *('if kind == "WEBP":', 'if kind == "none":'),
        _LIMITS + "a_webp_s_canvas_is_checked_before_its_plugin_could_allocate_it",
    ),
    Control(
        *("bombs", "pages of a PDF are counted", "pdf_pages.py"),
        *("if not 1 <= pages <= limits.max_pdf_pages:", "if pages < 1:"),
        "test_picture_pages.py::test_a_pdf_of_too_many_pages_is_refused",
    ),
    # --- decoders ---
    Control(
        *("decoders", "only five formats reach a decoder", DECODING),
        *('("BMP", re.compile(rb"BM")),', '("BMP", re.compile(rb"")),'),
        _REFUSALS + "what_is_no_accepted_picture_is_named_with_advice",
    ),
    Control(
        *("decoders", "a library's own words reach nobody", DECODING),
        "f\"Picture '{name}' is damaged or cut off and cannot be decoded. Send or save it again.\"",
        "str(error)",
        _REFUSALS + "a_file_cut_anywhere_is_refused",
    ),
    Control(
        *("decoders", "a page decodes in worker processes", "webui/desk.py"),
        *("        decode_in_workers()\n", ""),
        _WORKERS + "a_page_that_is_set_up_decodes_in_workers",
    ),
    Control(
        *("decoders", "a worker's memory is bounded", PROCESS),
        *("resource.setrlimit(resource.RLIMIT_AS, (bound,", "(lambda *_: None)(0, (bound,"),
        _WORKERS + "a_picture_that_needs_more_memory_than_the_limits_allow_is_refused",
    ),
    Control(
        *("decoders", "a worker's time is bounded", WORKERS),
        *("            too_slow.set()\n            self._process.kill()", "            pass"),
        _DIES + "[sleep-'sleep' takes longer than 3 seconds]",
        hangs=True,
    ),
    Control(
        *("decoders", "a worker opens no file and no connection", PROCESS),
        *('"RLIMIT_NOFILE", ', ""),
        _WORKERS + "a_worker_opens_nothing_and_starts_nothing",
    ),
    Control(
        *("decoders", "a worker has no secret in its environment", WORKERS),
        "env={key: os.environ[key] for key in _ENVIRONMENT if key in os.environ} | _QUIET",
        "env=dict(os.environ) | _QUIET",
        _WORKERS + "a_worker_knows_none_of_this_program_s_secrets",
    ),
    Control(
        *("decoders", "a worker's answer is checked against the limits", PROCESS),
        *("            check_size(first, second, name, limits)", "            pass"),
        _DIES + "[huge-'huge' cannot be read]",
    ),
    Control(
        *("decoders", "a worker's words are made fit to show", PROCESS),
        *('"".join(c for c in words if c.isprintable())[:_MOST_WORDS]', "words"),
        _WORKERS + "an_error_s_words_are_made_fit_to_show",
    ),
    Control(
        *("decoders", "a picture does not suffer for the one before", WORKERS),
        *("if answered or not is_used:", "if True:"),
        _WORKERS + "a_picture_does_not_suffer_for_the_one_before",
    ),
    Control(
        *("decoders", "a worker ends with its parent", PROCESS),
        *(
            "jobs.put(read_job(source))\n    finally:\n        os._exit(0)",
            "jobs.put(read_job(source))\n    finally:\n        pass",
        ),
        _WORKERS + "a_worker_ends_with_this_program_whatever_it_is_doing[killed-sleep]",
    ),
    Control(
        *("decoders", "a forked process holds none of its parent's workers", WORKERS),
        *("os.register_at_fork(after_in_child=_forget_parent)", "pass"),
        _WORKERS + "a_forked_process_has_workers_of_its_own_and_holds_none_of_ours",
    ),
    # --- pixels ---
    Control(
        *("pixels", "a turned photo is made upright", DECODING),
        *("return image if turn is None else image.transpose(turn)", "return image"),
        _PIXELS + "a_turned_photo_is_made_upright",
    ),
    Control(
        *("pixels", "transparency is put on white", DECODING),
        *("canvas.paste(rgb, mask=alpha)", "canvas.paste(rgb)"),
        _PIXELS + "every_mode_is_shown_on_white",
    ),
    Control(
        *("pixels", "colour profiles are applied", DECODING),
        *("if source.profile.xcolor_space.strip() == _PROFILE_SPACES[colour.mode]:", "if False:"),
        _PIXELS + "a_wide_gamut_picture_shows_its_colours_in_srgb",
    ),
    Control(
        *("pixels", "16 bits are scaled, not cut", DECODING),
        *("(levels.astype(np.uint32) * 255 + 32767) // 65535", "levels.clip(0, 255)"),
        _PIXELS + "a_16_bit_gradient_is_scaled_and_not_clipped",
    ),
    Control(
        *("pixels", "the first frame is the one that is seen", DECODING),
        '        image.load()\n        if kind == "PNG":',
        '        image.seek(1)\n        image.load()\n        if kind == "PNG":',
        _PIXELS + "the_first_frame_of_an_animation_is_shown",
    ),
    Control(
        *("pixels", "metadata is dropped", DECODING),
        *("    rgb.info = {}\n", ""),
        _PIXELS + "metadata_is_dropped_from_the_pixels",
    ),
    # --- addresses ---
    Control(
        *("addresses", "an address in place of a file is not fetched", "pictures.py"),
        *('if re.match(r"(https?|ftp|data|file):"', 'if re.match(r"(never):"'),
        _REFUSALS + "a_web_address_is_not_fetched",
    ),
    Control(
        *("addresses", "only allowed hosts are asked", REMOTE),
        *("if target.allowed_as not in self._allowed:", "if False:"),
        _REMOTE + "an_address_that_is_not_allowed_or_reads_two_ways_is_not_asked",
    ),
    Control(
        *("addresses", "an address that reads two ways is not asked", REMOTE),
        *("_NETLOC.fullmatch(parts.netloc.lower())", "_NETLOC.search(parts.netloc.lower())"),
        _REMOTE + "an_address_that_is_not_allowed_or_reads_two_ways_is_not_asked",
    ),
    Control(
        *("addresses", "every address of a name must be public", REMOTE),
        *("not all(is_public(address)", "not any(is_public(address)"),
        _REMOTE + "an_allowed_name_of_a_private_address_is_not_connected_to",
    ),
    Control(
        *("addresses", "addresses of IPv4 inside IPv6 are looked into", REMOTE),
        *("if number not in _UNICAST or any(number in each for each in _NO_HOSTS):", "if False:"),
        _REMOTE + "an_allowed_name_of_a_private_address_is_not_connected_to",
    ),
    Control(
        *("addresses", "the connection goes to the checked address", REMOTE),
        *("connect(address, port, _left(connect_by))", "connect(host, port, _left(connect_by))"),
        _REMOTE + "a_name_is_looked_up_once_and_the_checked_address_is_used",
    ),
    Control(
        *("addresses", "a redirect's address is checked like the first", REMOTE),
        *("following = self._checked(address)", "following = _parsed(address)"),
        _REMOTE + "a_redirect_elsewhere_is_not_followed",
    ),
    Control(
        *("addresses", "redirects are counted", REMOTE),
        *("range(self._max_redirects + 1)", "range(9)"),
        _REMOTE + "redirects_are_counted",
    ),
    Control(
        *("addresses", "a redirect does not leave TLS", REMOTE),
        *('if target.scheme == "https" and', 'if target.scheme == "never" and'),
        _REMOTE + "a_redirect_does_not_leave_tls",
    ),
    Control(
        *("addresses", "bytes are counted while they come", REMOTE),
        *("check_bytes(len(data), target.name", "check_bytes(len(data) // 1000, target.name"),
        _REMOTE + "a_body_without_end_is_cut_at_the_limit",
    ),
    Control(
        *("addresses", "all of it has one deadline", REMOTE),
        *(
            "self._stream.read(max_bytes, _left(self._deadline))",
            "self._stream.read(max_bytes, timeout)",
        ),
        _REMOTE + "a_host_that_drips_is_left_after_the_total_time[status]",
        hangs=True,
    ),
    Control(
        *("addresses", "nothing is unpacked", REMOTE),
        *('.strip().lower() != b"identity":', '.strip().lower() == b"never":'),
        _REMOTE + "a_compressed_body_is_not_unpacked",
    ),
    Control(
        *("addresses", "what comes is looked at, whatever it is called", REMOTE),
        *("                picture_format(found, target.name)\n", ""),
        _REMOTE + "what_comes_is_looked_at_whatever_it_is_called",
    ),
    Control(
        *("addresses", "gradio's own route fetches nothing", "shield.py"),
        *('refused = 404 if _FOREIGN_FILE.search(scope["path"]) else 0', "refused = 0"),
        _SERVER + "an_address_in_place_of_a_file_is_not_fetched",
    ),
    # --- control tokens ---
    Control(
        *("control tokens", "what text spells stays text", "prompting/tokenizer.py"),
        *("raw.encode_special_tokens = True", "raw.encode_special_tokens = False"),
        "prompting/test_prepare.py::test_no_added_token_of_the_real_vocabulary_steers_from_any_field",
    ),
    Control(
        *("control tokens", "files that mark none are as safe", "prompting/tokenizer.py"),
        *("raw.add_special_tokens(list(known))", "pass"),
        "prompting/test_tokenizer.py::test_a_file_that_forgot_to_mark_control_tokens_is_as_safe",
    ),
    Control(
        *("control tokens", "recorded tokens steer nothing", "prompting/prepare.py"),
        *("if control.isdisjoint(int(id) for id in ids):", "if True:"),
        "prompting/test_prepare.py::test_recalled_ids_with_a_control_token_are_not_used",
    ),
    # --- markup ---
    Control(
        *("markup", "the page loads from its own server only", "shield.py"),
        *("\"img-src 'self' data: blob:\"", '"img-src * data: blob:"'),
        _SERVER + "the_browser_may_load_from_this_server_only",
    ),
    Control(
        *("markup", "answers come with headers that forbid guessing", "shield.py"),
        *('    (b"x-content-type-options", b"nosniff"),\n', ""),
        _SERVER + "every_answer_forbids_guessing_its_type_and_telling_where_it_was",
    ),
    Control(
        *("markup", "the page's scripts put text in as text", "webui/assets/elements.js"),
        *('if (name === "text") node.textContent', 'if (name === "text") node.innerHTML'),
        "webui/test_conversation_view.py::test_the_scripts_put_no_text_in_as_markup",
    ),
    Control(
        *("markup", "reports escape what was asked and said", "evaluation/report.py"),
        *('lang="">{escape(shown)}</dd>', 'lang="">{shown}</dd>'),
        "evaluation/test_report.py::test_other_peoples_text_is_text",
    ),
    Control(
        *("markup", "exported pages escape what people and models wrote", "export/html_page.py"),
        *("{escape(printable(text))}", "{printable(text)}"),
        "export/test_html_page.py::test_nothing_in_a_hostile_chat_becomes_markup",
    ),
    # --- other sites ---
    Control(
        *("other sites", "only this machine's names are answered", SERVER),
        *("    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))\n", ""),
        _SERVER + "a_request_for_another_host_name_is_refused",
    ),
    Control(
        *("other sites", "another site's page changes nothing", "shield.py"),
        *(
            'return origin is not None and urlsplit(origin).netloc != headers.get("host")',
            "return False",
        ),
        _SERVER + "another_sites_page_may_change_nothing",
    ),
    # --- files ---
    Control(
        *("files", "only files that were sent to the server are opened", "webui/desk.py"),
        *(
            "if not isinstance(file, str) or folder not in Path(file).resolve().parents:",
            "if False:",
        ),
        "webui/test_actions.py::test_only_files_that_were_sent_to_the_server_are_opened",
    ),
    Control(
        *("files", "a name from outside stays in its folder", "export/pictures.py"),
        *('re.sub(r"[^A-Za-z0-9._-]+", "-", stem)', "str(stem)"),
        "webui/test_shown_pictures.py::test_names_from_outside_stay_in_the_folder",
    ),
    # --- other people ---
    Control(
        *("other people", "caches are salted by owner", "webui/library.py"),
        *('f"{self._salt} {owner}"', 'f"{self._salt}"'),
        "webui/test_library.py::test_people_share_no_salt_and_one_person_s_conversations_do",
    ),
    Control(
        *("other people", "each browser has a secret of its own", "webui/visitors.py"),
        *(
            "            return\n        secret = secrets.token_urlsafe(32)",
            '            return\n        secret = "a" * 43',
        ),
        "webui/test_visitors.py::test_two_browsers_are_two_people",
    ),
    Control(
        *("other people", "scripts cannot read that secret", "webui/visitors.py"),
        *('"/", KEPT_SEC, True', '"/", KEPT_SEC, False'),
        "webui/test_visitors.py::test_scripts_cannot_read_it_and_other_sites_cannot_send_it",
    ),
    Control(
        *("other people", "a picture's key has its size and mode", "pictures.py"),
        *('f"{rgb.mode} {width} {height}\\n"', '""'),
        "test_pictures.py::test_equality_follows_pixels_size_and_crops_and_not_names",
    ),
    # --- at rest ---
    Control(
        *("at rest", "gradio tells nobody anything", "webui/quiet_gradio.py"),
        *('"GRADIO_ANALYTICS_ENABLED": "False"', '"GRADIO_ANALYTICS_ENABLED": "True"'),
        "webui/test_quiet_gradio.py::test_the_libraries_below_are_told_to_tell_nobody_anything",
    ),
    Control(
        *("at rest", "browsers keep no history of runs", SERVER),
        *('"run_history": False', '"run_history": True'),
        _SERVER + "what_gradio_would_do_by_itself_is_off",
    ),
    Control(
        *("at rest", "there is no monitoring page", SERVER),
        *('"enable_monitoring": False', '"enable_monitoring": True'),
        _SERVER + "pages_nobody_asked_for_are_off",
    ),
    Control(
        *("at rest", "the cache's folder is its owner's alone", "engine/cache_folder.py"),
        *("os.chmod(self._folder, 0o700)", "pass"),
        "engine/test_cache_folder.py::test_folder_and_files_are_their_owners_alone",
    ),
    # --- model files ---
    Control(
        *("model files", "a pickle is told from weights and not run", "loading/shards.py"),
        *(
            "if length > MAX_HEADER_BYTES or length > rest or len(start) < LENGTH_BYTES:",
            "if False:",
        ),
        "loading/test_shards.py::test_a_saved_pickle_is_refused_and_not_run",
    ),
    Control(
        *("model files", "an index points at weights in its own folder", "loading/checkpoint.py"),
        *('plain = Path(file).name == file and file.endswith(".safetensors")', "plain = True"),
        "loading/test_loader.py::test_an_index_cannot_point_out_of_its_folder_or_to_another_format",
    ),
    Control(
        *("model files", "a GGUF's counts are bounded", GGUF),
        *("if tensors > MAX_TENSORS or values > MAX_VALUES:", "if False:"),
        _HEADER + "damage_is_named",
    ),
    Control(
        *("model files", "a GGUF's lengths end inside the file", GGUF),
        *("if count > self._limit - start:", "if False:"),
        _HEADER + "damage_is_named",
    ),
    Control(
        *("model files", "a GGUF's tensors lie inside the file", GGUF),
        *("or data_start + offset + length > self._size:", "or False:"),
        _HEADER + "damage_is_named",
    ),
    Control(
        *("model files", "a GGUF's tensors do not overlap", GGUF),
        *("if tensor.start < end:", "if False:"),
        _HEADER + "damage_is_named",
    ),
    Control(
        *("model files", "Megatron's directory names its own classes and no other", DCP),
        'raise pickle.UnpicklingError(f"{module}.{name}")',
        "return super().find_class(module, name)",
        _MEGATRON + "a_directory_that_would_run_code_is_refused",
    ),
    Control(
        *("model files", "pieces of Megatron's weights are numbers alone", DCP),
        *("weights_only=True", "weights_only=False"),
        _MEGATRON + "a_weight_that_would_run_code_is_refused",
    ),
    Control(
        *("model files", "pieces of Megatron's weights lie in their folder", DCP),
        *("_require(PurePosixPath(name).name == name)", "pass"),
        _MEGATRON + "a_piece_outside_of_the_folder_is_not_read",
    ),
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
    # --- the API ---
    Control(
        *("the API", "with keys, every route needs one", "api/keys.py"),
        *("        return self._is_guest(HTTPConnection(scope))", "        return True"),
        "api/test_keys.py::test_every_route_of_the_app_and_the_page_needs_a_key",
        hangs=True,
    ),
    Control(
        *("the API", "a wrong key opens nothing", "api/keys.py"),
        *("if any(fits) else None", "if True else None"),
        "api/test_keys.py::test_every_route_of_the_app_and_the_page_needs_a_key",
        hangs=True,
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
        hangs=True,
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
)
