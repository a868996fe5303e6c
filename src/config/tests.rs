//! What is read of files, variables and flags, and what is refused.

use std::path::Path;

use clap::Parser;

use super::*;

/// The settings of a command line, a file and variables; or all that is wrong with them.
fn load(args: &[&str], text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
    let cli = Cli::try_parse_from([&["ebbtide"], args].concat()).map_err(|error| error.to_string())?;
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let given = Given::parse(text, Path::new("ebbtide.toml"), variables).map_err(|error| error.to_string())?;
    Settings::of(&cli, given).map_err(|error| error.to_string())
}

fn fault(args: &[&str], text: &str, variables: &[(&str, &str)]) -> String {
    load(args, text, variables).err().unwrap_or_else(|| panic!("taken: {args:?} {text} {variables:?}"))
}

fn evm(settings: &Settings, chain: &str) -> EvmFile {
    match &settings.effective.chains[chain].source {
        SourceFile::Evm(evm) => evm.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_setting_of_another_source_is_refused() {
    let foreign = [
        ("evm", "path = 'blocks.ndjson'"),
        ("evm", "network_id = 'main'"),
        ("evm", "seed = 1"),
        ("gno", "wrapped_native = ['0x1']"),
        ("gno", "confirm_grace_ms = 1"),
        ("starknet", "events = ['A()']"),
        ("starknet", "check_bloom = false"),
        ("file", "urls = ['http://127.0.0.1']"),
        ("file", "require_func = true"),
        ("devnet", "tokens = ['0x1']"),
        ("devnet", "udc_address = ['0x1']"),
    ];
    for (source, line) in foreign {
        let error = fault(&["sync"], &format!("[chains.a]\nsource = '{source}'\n{line}"), &[]);
        let (setting, _) = line.split_once(' ').expect("a setting");
        assert!(error.starts_with(&format!("ebbtide.toml: [chains.a] {setting} is for source = ")), "{error}");
        assert!(error.contains(&format!("and chain a has source = \"{source}\"")), "{error}");
    }
    for (args, flag) in [
        (&["--source", "evm", "--url", "http://127.0.0.1", "--seed", "3"][..], "--seed: seed"),
        (&["--source", "evm", "--url", "http://127.0.0.1", "--kind", "other"], "--kind: kind"),
        (&["--file", "x", "--ws-url", "ws://127.0.0.1"], "--ws-url: ws_url"),
        (&["--source", "devnet", "--url", "http://127.0.0.1"], "--url: urls"),
        (&["--token", "0x1"], "--token: tokens"),
    ] {
        let error = fault(&[&["run"], args].concat(), "", &[]);
        assert!(error.starts_with(&format!("{flag} is for source = ")), "{error}");
    }
}

#[test]
fn a_flag_that_a_command_would_ignore_is_refused() {
    for args in [
        &["serve", "--once"][..],
        &["serve", "--batch", "5"],
        &["serve", "--workers", "5"],
        &["serve", "--history", "none"],
        &["serve", "--keep-evidence-days", "30"],
        &["serve", "--on-bad-event", "halt"],
        &["serve", "--on-deep-change", "halt"],
        &["process", "--listen", "127.0.0.1:1"],
        &["sync", "--source", "devnet", "--listen", "127.0.0.1:1"],
    ] {
        let error = fault(args, "", &[]);
        assert!(error.contains("unexpected argument '--"), "{args:?}: {error}");
    }
    load(&["serve", "--negative-balances", "show", "--listen", "127.0.0.1:1"], "", &[]).expect("what serve uses");
    // Where the file's chains have other names, a flag for `main` would say nothing.
    let error = fault(&["sync", "--start-height", "5"], "[chains.a]\nsource = 'devnet'\n", &[]);
    assert!(error.contains("--start-height is for chain main") && error.contains("--chain (a)"), "{error}");
}

#[test]
fn a_chain_named_twice_is_refused_with_the_remedy() {
    let file = "[chains.main]\nsource = 'evm'\nurls = ['http://127.0.0.1']\n";
    let error = fault(&["sync", "--url", "http://127.0.0.2"], file, &[]);
    assert!(error.contains("chain main is named twice: --url") && error.contains("--chain"), "{error}");
    let error = fault(&["sync"], "[chains.Main]\nsource = 'devnet'\n[chains.main]\nsource = 'devnet'\n", &[]);
    assert!(error.contains("chains Main and main") && error.contains("call one of them otherwise"), "{error}");
    let error = fault(&["sync"], "[chains.a]\nsource = 'devnet'\n[chains.a]\nsource = 'devnet'\n", &[]);
    assert!(error.contains("ebbtide.toml, line 3") && error.contains("duplicate"), "{error}");
    // What completes the file's chain, and what is another chain, is taken.
    let settings = load(&["sync", "--start-height", "5"], file, &[]).expect("one chain");
    assert_eq!(settings.chains["main"].sync.chain.start_height.map(crate::chain::Height::get), Some(5));
    let settings = load(&["sync", "--url", "http://127.0.0.2", "--chain", "b"], file, &[]).expect("two chains");
    assert_eq!(settings.chains.len(), 2);
}

#[test]
fn variables_win_over_the_file_and_flags_over_both() {
    let text = "[chains.Main]\nsource = \"evm\"\nurls = [\"http://a\"]\nfinality_depth = 3\n";
    let variables = [("EBBTIDE_CHAINS__MAIN__URLS", "http://b, http://c"), ("EBBTIDE_CHAINS__MAIN__START_HEIGHT", "7")];
    let settings = load(&["sync"], text, &variables).expect("good settings");
    assert_eq!(evm(&settings, "Main").urls, ["http://b", "http://c"]);
    let common = &settings.effective.chains["Main"].common;
    assert_eq!((common.start_height, common.finality_depth), (Some(7), Some(3)));
    let args = ["sync", "--chain", "Main", "--url", "http://d", "--start-height", "8"];
    let settings = load(&args, text, &variables).expect("good settings");
    assert_eq!(evm(&settings, "Main").urls, ["http://d"]);
    assert_eq!(settings.effective.chains["Main"].common.start_height, Some(8));
}

#[test]
fn evidence_is_kept_for_whole_days_or_for_ever() {
    let kept = |args: &[&str], text: &str, variables: &[(&str, &str)]| {
        load(args, text, variables).expect("good settings").process.keep_evidence_days
    };
    assert_eq!(kept(&["process"], "", &[]), None);
    assert_eq!(kept(&["process"], "keep_evidence_days = 90", &[]), Some(90));
    assert_eq!(kept(&["process"], "keep_evidence_days = 90", &[("EBBTIDE_KEEP_EVIDENCE_DAYS", "30")]), Some(30));
    assert_eq!(kept(&["run", "--keep-evidence-days", "1"], "keep_evidence_days = 90", &[]), Some(1));
    // 0 would drop what a reorganisation has just replaced; a hundred years are more than anybody means.
    for days in ["0", "36501"] {
        let error = fault(&["process", "--keep-evidence-days", days], "", &[]);
        assert_eq!(error, format!("keep_evidence_days is {days}: it must be 1 to 36500"));
    }
    for (args, text) in [(&["process", "--keep-evidence-days=-1"][..], ""), (&["process"], "keep_evidence_days = '1d'")]
    {
        assert!(fault(args, text, &[]).contains("evidence"), "{args:?} {text}");
    }
    let shown = load(&["config"], "keep_evidence_days = 90", &[]).expect("good settings").shown();
    assert!(shown.contains("keep_evidence_days = 90\n"), "{shown}");
}

#[test]
fn events_may_hold_commas() {
    let variables = [
        ("EBBTIDE_CHAINS__A__SOURCE", "evm"),
        ("EBBTIDE_CHAINS__A__URLS", "http://a"),
        ("EBBTIDE_CHAINS__A__EVENTS", "A(uint256 a, uint256 b); B()"),
    ];
    let settings = load(&["sync"], "", &variables).expect("good settings");
    assert_eq!(evm(&settings, "a").events, ["A(uint256 a, uint256 b)", "B()"]);
}

#[test]
fn factories_are_tables_with_one_address_or_many() {
    let address = |n: u8| format!("0x{n:040x}");
    let chain = "[chains.a]\nsource = 'evm'\nurls = ['http://a']\n";
    let made = "event = 'Made(address a)'\nparameter = 'a'\n";
    let text = format!(
        "{chain}[[chains.a.factories]]\naddress = '{0}'\n{made}events = ['F()']\n[[chains.a.factories]]\naddress = ['{0}', \
         '{1}']\n{made}tokens = true\n",
        address(1),
        address(2)
    );
    let settings = load(&["sync"], &text, &[]).expect("good settings");
    let factories = evm(&settings, "a").factories;
    let [first, second] = factories.as_slice() else { panic!("two factories") };
    assert_eq!((first.address.as_slice(), first.tokens), ([address(1)].as_slice(), false));
    assert_eq!(second.address, [address(1), address(2)]);
    let variable =
        format!("[{{address = '{}', event = 'Made(address a)', parameter = 'a', tokens = true}}]", address(3));
    let settings = load(&["sync"], &text, &[("EBBTIDE_CHAINS__A__FACTORIES", &variable)]).expect("good settings");
    let factories = evm(&settings, "a").factories;
    assert!(factories.len() == 1 && factories[0].tokens);
    let error = fault(&["sync"], &format!("{chain}[[chains.a.factories]]\nadress = '0x1'\n"), &[]);
    assert!(error.contains("adress"), "{error}");
    let error = fault(&["sync"], &format!("{chain}[[chains.a.factories]]\naddress = 7\n"), &[]);
    assert!(error.contains("an address or a list of addresses"), "{error}");
}

#[test]
fn every_fault_is_named_with_where_it_was_said() {
    let text = "wrok = 1\nworkers = 0\n[chains.a]\nsurce = 'evm'\n[chains.b]\nsource = 'devnet'\nfinality_depth = -3\n\
                concurrency = 99\n[projections.token_balances]\nhistory = 'some'\n[projections.mine]\ndeployers = ['0x1']\n\
                [projections.other]\nnotifications = 'keys'\n[api]\nlisten = 'here'\n";
    let error = fault(&["config", "--check"], text, &[("EBBTIDE_WORKERZ", "3"), ("EBBTIDE_CHAINS__B__SEED", "many")]);
    for words in [
        "EBBTIDE_WORKERZ is no setting and is ignored; the nearest one is EBBTIDE_WORKERS",
        "ebbtide.toml: wrok is no setting; the nearest one is ",
        "ebbtide.toml: [chains.a] surce is no setting; the nearest one is chains.a.source",
        "[chains.a]: source is missing",
        "ebbtide.toml: [chains.b] finality_depth: ",
        "EBBTIDE_CHAINS__B__SEED: ",
        "[chains.b] concurrency is 99",
        "workers is 0",
        "ebbtide.toml: [projections.token_balances] history: ",
        "ebbtide.toml: [projections.mine] deployers is not a setting of this projection",
        "ebbtide.toml: [projections.other] notifications is not a setting of this projection",
        "listen is here",
    ] {
        assert!(error.contains(words), "{words} in:\n{error}");
    }
    assert_eq!(error.lines().count(), 12, "{error}");
}

#[test]
fn a_variable_that_is_no_setting_is_warned_of_and_refused_by_the_check_alone() {
    let variables =
        [("EBBTIDE_URL", "http://key"), ("EBBTIDE_SERVICE_HOST", "10.0.0.1"), ("EBBTIDE_PORT", "tcp://a:1")];
    let settings = load(&["process"], "", &variables).expect("it goes on");
    let [only] = settings.unknown_variables.as_slice() else { panic!("{:?}", settings.unknown_variables) };
    assert!(only.contains("EBBTIDE_URL ") && only.contains("EBBTIDE_CHAINS__NAME__URLS") && !only.contains("key"));
    let error = fault(&["config", "--check"], "", &variables);
    assert_eq!(error, *only);
}

#[test]
fn no_error_shows_a_password_or_a_key() {
    for text in [
        "database_url = 'postgres://u:SECRET@h/d\n",
        "database_url = postgres://u:SECRET@h/d\n",
        "database_url = ['postgres://u:SECRET@h/d']\n",
        "[chains.a]\nsource = 'evm'\nurls = 'https://h/SECRET'\n",
        "[chains.a]\nsource = 'evm'\nurls = [7]\nws_url = ['wss://h/SECRET']\n",
        "[chains.a]\nsource = 'evm'\nurls = ['ftp://h/SECRET']\n",
    ] {
        let error = fault(&["sync"], text, &[]);
        assert!(error.contains("ebbtide.toml") || error.contains("url"), "{error}");
        assert!(!error.contains("SECRET"), "{error}");
    }
}

#[test]
fn the_settings_that_count_are_shown_without_secrets_and_can_be_read_again() {
    let text = "database_url = 'postgres://me:SECRET@db.example:5433/d'\n[chains.a]\nsource = 'evm'\n\
                urls = ['https://node.example/v3/SECRET']\nws_url = 'wss://node.example/SECRET'\n";
    let shown = load(&["config", "--workers", "7"], text, &[]).expect("good settings").shown();
    for words in ["https://node.example", "db.example:5433", "workers = 7", "source = \"evm\"", "check_bloom = true"] {
        assert!(shown.contains(words), "{words} in:\n{shown}");
    }
    assert!(!shown.contains("SECRET"), "{shown}");
    let settings = load(&["config"], &shown, &[]).expect("what is shown is a file of settings");
    assert_eq!(settings.process.workers, 7);
}
