//! Variables: which are settings, which are somebody else's, and which were meant to be one.

use toml::{Table, Value};

use super::names;

/// Variables of the program that are no settings of the file.
const OTHERS: [&str; 8] =
    ["CONFIG", "DATA", "DATA_DIR", "DATABASE_URL", "KEEP_DATABASES", "LOG", "LOG_FORMAT", "PG_BIN"];

/// Settings that are lists: a variable holds them as a TOML array, or separated by commas (events: by semicolons).
/// Factories are tables, so only as an array.
const LISTS: [(&str, char); 9] = [
    ("urls", ','),
    ("tokens", ','),
    ("wrapped_native", ','),
    ("trusted_grc20_packages", ','),
    ("events", ';'),
    ("factories", ';'),
    ("contracts", ','),
    ("udc_address", ','),
    ("deployers", ','),
];

/// What a variable is.
pub(super) enum Variable {
    /// A setting, by its path in the file.
    Setting(Vec<String>, Value),
    /// Named as ours are, but none; the known one that is spelled most like it, without `EBBTIDE_`.
    Unknown { nearest: String },
    /// Nothing for the settings: another's, empty, or one that is read elsewhere.
    Elsewhere,
}

/// What a variable is to us. Two underscores in its name go one level down.
pub(super) fn read(name: &str, value: &str) -> Variable {
    let Some(rest) = name.strip_prefix("EBBTIDE_") else { return Variable::Elsewhere };
    if value.is_empty() || OTHERS.contains(&rest) || is_of_a_service(rest) {
        return Variable::Elsewhere;
    }
    let path: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
    if !names::is_setting(&path) {
        return Variable::Unknown { nearest: names::nearest(&path, &OTHERS) };
    }
    let value = path.last().map_or_else(|| Value::from(value), |key| typed(key, value));
    Variable::Setting(path, value)
}

/// Whether Kubernetes sets this variable, given without `EBBTIDE_`, in each pod beside a Service named `ebbtide` or
/// `ebbtide-…`: `…_SERVICE_HOST`, `…_SERVICE_PORT`, `…_SERVICE_PORT_<NAME>`, `…_PORT`, `…_PORT_<N>_<PROTOCOL>` and `…_ADDR`,
/// `…_PORT`, `…_PROTO` of that.
fn is_of_a_service(rest: &str) -> bool {
    if rest.contains("__") {
        return false;
    }
    let words: Vec<&str> = rest.split('_').collect();
    let ends_with = |end: &[&str]| words.ends_with(end);
    let of_a_port = |words: &[&str]| match words {
        ["PORT", number, "TCP" | "UDP" | "SCTP", rest @ ..] => {
            number.bytes().all(|b| b.is_ascii_digit()) && matches!(rest, [] | ["ADDR" | "PORT" | "PROTO"])
        }
        _ => false,
    };
    ends_with(&["SERVICE", "HOST"])
        || words.windows(2).any(|pair| pair == ["SERVICE", "PORT"])
        || ends_with(&["PORT"])
        || (0..words.len()).any(|n| of_a_port(&words[n..]))
}

fn typed(key: &str, value: &str) -> Value {
    let parsed = toml::from_str::<Table>(&["x = ", value].concat()).ok().and_then(|mut t| t.remove("x"));
    if let Some((_, separator)) = LISTS.iter().find(|(list, _)| *list == key) {
        return match parsed {
            Some(list @ Value::Array(_)) => list,
            _ => Value::Array(value.split(*separator).map(|part| Value::from(part.trim())).collect()),
        };
    }
    match parsed {
        Some(number @ (Value::Integer(_) | Value::Boolean(_))) if key != "network_id" => number,
        _ => Value::from(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_a_kubernetes_service_are_nobodys_slip() {
        for rest in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT",
            "PORT_8080_TCP",
            "PORT_8080_TCP_ADDR",
            "PORT_8080_TCP_PORT",
            "PORT_8080_TCP_PROTO",
            "PORT_53_UDP",
            "API_SERVICE_HOST",
            "API_PORT",
            "API_PORT_80_TCP_ADDR",
        ] {
            assert!(matches!(read(&format!("EBBTIDE_{rest}"), "10.0.0.7"), Variable::Elsewhere), "{rest}");
        }
        for rest in ["PORTS", "PORT_X_TCP", "SERVICE", "CHAINS__PORT", "PORT_80_HTTP"] {
            assert!(matches!(read(&format!("EBBTIDE_{rest}"), "1"), Variable::Unknown { .. }), "{rest}");
        }
    }

    #[test]
    fn the_nearest_setting_is_named() {
        for (name, wanted) in [
            ("EBBTIDE_SOURCE", "CHAINS__NAME__SOURCE"),
            ("EBBTIDE_URL", "CHAINS__NAME__URLS"),
            ("EBBTIDE_START_HEIGHT", "CHAINS__NAME__START_HEIGHT"),
            ("EBBTIDE_CHIANS__A__SOURCE", "CHAINS__A__SOURCE"),
            ("EBBTIDE_CHAINS__A__URL", "CHAINS__A__URLS"),
            ("EBBTIDE_POLL_INTERVAL", "POLL_INTERVAL_MS"),
            ("EBBTIDE_LOGS", "LOG"),
            ("EBBTIDE_LISTEN", "API__LISTEN"),
        ] {
            let Variable::Unknown { nearest } = read(name, "x") else { panic!("{name} is no setting") };
            assert_eq!(nearest, wanted, "{name}");
        }
    }
}
