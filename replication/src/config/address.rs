//! `host:port`, as it is written.

use std::net::IpAddr;

/// Host and port; an IPv6 address comes without its brackets. Otherwise what to do.
pub(crate) fn split(address: &str) -> Result<(&str, u16), &'static str> {
    const FORM: &str = "write it as host:port, an IPv6 address in brackets: [::1]:9291";
    let (host, port) = address.rsplit_once(':').ok_or(FORM)?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.strip_suffix(']').ok_or(FORM)?;
            if !matches!(inner.parse(), Ok(IpAddr::V6(_))) {
                return Err(FORM);
            }
            inner
        }
        None if host.contains(':') => return Err(FORM),
        None => host,
    };
    let is_name = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
    // `parse` would take a sign.
    let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(port) if is_name && is_number => Ok((host, port)),
        _ => Err(FORM),
    }
}

/// Whether a host, as [`split`] gives it, is this machine for sure. No name but `localhost` is.
pub(crate) fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}
