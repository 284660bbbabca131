"""Controls of texts, of the page and of what people leave behind."""

from tests.sabotage.control import Control

SERVER, _SERVER = "server.py", "test_server.py::test_"
ARCHIVE, _FILES = "conversation_file/archive.py", "conversation_file/test_files.py::test_"

CONTROLS = (
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
    Control(
        *("markup", "notebooks escape what models said", "notebook/shown.py"),
        *(
            "overflow-wrap:anywhere\">{escape(text)}</div>'",
            "overflow-wrap:anywhere\">{text}</div>'",
        ),
        "notebook/test_displays.py::test_nothing_that_is_shown_acts",
    ),
    Control(
        *("markup", "notebooks escape what stands in tables", "notebook/shown.py"),
        *("{escape(cell)}</{tag}>'", "{cell}</{tag}>'"),
        "notebook/test_displays.py::test_nothing_that_is_shown_acts",
    ),
    Control(
        *("markup", "no cell of a CSV file is a formula", "folders/outputs.py"),
        *("if isinstance(value, str) and value.startswith(_FORMULA_STARTS):", "if False:"),
        "folders/test_outputs.py::test_no_cell_is_a_formula",
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
    Control(
        *("files", "entries of a conversation file have a most of bytes", ARCHIVE),
        *("        if entry.file_size > limit:", "        if False:"),
        _FILES + "a_zip_bomb_is_not_unpacked",
    ),
    Control(
        *("files", "no more of an entry is unpacked than it says", ARCHIVE),
        *("stream.read(entry.file_size + 1)", "stream.read()"),
        _FILES + "a_zip_bomb_that_lies_about_its_size_is_not_unpacked_either",
    ),
    Control(
        *("files", "a conversation file's entries have a most of bytes together", ARCHIVE),
        "if sum(entry.file_size for entry in self._entries.values()) > limits.max_file_bytes:",
        "if False:",
        _FILES + "pictures_that_unpack_to_more_than_a_file_may_hold_are_not_unpacked",
    ),
    Control(
        *("files", "entries of a conversation file are counted", ARCHIVE),
        "if disk or tail.startswith(_END64_LOCATOR) or entries > self._limits.max_entries:",
        "if disk or tail.startswith(_END64_LOCATOR):",
        _FILES + "a_file_with_endless_entries_is_refused_before_they_are_listed",
    ),
    Control(
        *("files", "JSON that is nested without end is told", "schemas.py"),
        *("    except RecursionError:\n", "    except FloatingPointError:\n"),
        "test_schemas.py::test_json_that_readers_would_disagree_about_is_none",
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
    Control(
        *("at rest", "no variable of the environment makes a share link", SERVER),
        *("share=False,", "share=None,"),
        _SERVER + "no_variable_of_the_environment_opens_the_page",
    ),
    Control(
        *("at rest", "no variable of the environment opens files", SERVER),
        *('"allowed_paths": [],', '"allowed_paths": None,'),
        _SERVER + "no_variable_of_the_environment_opens_the_page",
    ),
    Control(
        *("at rest", "no variable of the environment makes tools of the page", SERVER),
        *('"mcp_server": False,', '"mcp_server": None,'),
        _SERVER + "no_variable_of_the_environment_opens_the_page",
    ),
    Control(
        *("at rest", "conversations are their owner's alone", "store/database.py"),
        *(
            "os.O_RDWR | os.O_CREAT, 0o600))\n    _allow_only_the_owner(path, 0o600)",
            "os.O_RDWR | os.O_CREAT, 0o644))",
        ),
        "store/test_opening.py::test_only_the_user_can_read_it",
    ),
    Control(
        *("at rest", "pictures of conversations are their owner's alone", "store/picture_files.py"),
        *("os.fchmod(file.fileno(), 0o600)", "pass"),
        "store/test_opening.py::test_only_the_user_can_read_it",
    ),
    Control(
        *("at rest", "uploads of a killed process go", "webui/upload_folder.py"),
        *("        _delete_if_dead(folder)", "        pass"),
        "webui/test_upload_folder.py::test_uploads_of_a_killed_process_go_with_the_next_start_and"
        "_others_stay",
    ),
)
