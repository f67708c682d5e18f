//! Users and groups of the root file system that a process runs in.

use std::fs;

/// Who a process is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) name: String,
    pub(super) home: String,
    pub(super) shell: String,
}

/// Looks up `user`, `uid`, `user:group` or `uid:gid`; root when `None`.
pub(super) fn look_up(wanted: Option<&str>) -> Result<Identity, String> {
    // Missing files are empty ones: a minimal root has no users but by number.
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    resolve(wanted.unwrap_or("0"), &passwd, &group)
}

fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let mut identity = find_user(user, passwd).ok_or_else(|| {
        format!("user {user:?} is not in /etc/passwd; give a name from it or a number")
    })?;
    identity.groups = supplementary(&identity.name, group);
    if let Some(wanted) = wanted_group {
        identity.gid = find_group(wanted, group).ok_or_else(|| {
            format!("group {wanted:?} is not in /etc/group; give a name from it or a number")
        })?;
    }
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    Ok(identity)
}

fn find_user(user: &str, passwd: &str) -> Option<Identity> {
    let number: Option<u32> = user.parse().ok();
    for line in passwd.lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(_), Some(uid), Some(gid), Some(_), Some(home), Some(shell)) = (
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
            fields.next(),
        ) else {
            continue;
        };
        let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else {
            continue;
        };
        if name == user || number == Some(uid) {
            return Some(Identity {
                uid,
                gid,
                groups: Vec::new(),
                name: name.into(),
                home: or_default(home, "/"),
                shell: or_default(shell, "/bin/sh"),
            });
        }
    }
    let uid = number?;
    Some(Identity {
        uid,
        gid: if uid == 0 { 0 } else { uid },
        groups: Vec::new(),
        name: if uid == 0 { "root".into() } else { user.into() },
        home: if uid == 0 { "/root".into() } else { "/".into() },
        shell: "/bin/sh".into(),
    })
}

fn or_default(field: &str, default: &str) -> String {
    if field.is_empty() {
        default.into()
    } else {
        field.into()
    }
}

fn find_group(wanted: &str, group: &str) -> Option<u32> {
    let named = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == wanted).then(|| fields.nth(1)?.parse().ok())?
    });
    named.or_else(|| wanted.parse().ok())
}

fn supplementary(user: &str, group: &str) -> Vec<u32> {
    group
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(':');
            let gid = fields.nth(2)?.parse().ok()?;
            fields
                .next()?
                .split(',')
                .any(|member| member == user)
                .then_some(gid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nweb:x:33:34::/srv:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nstaff:x:50:root,web\nadm:x:4:web\n";

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let by_name = resolve("web", PASSWD, GROUP).unwrap();
        assert_eq!((by_name.uid, by_name.gid), (33, 34));
        assert_eq!(by_name.groups, [34, 50, 4]);
        assert_eq!(
            (by_name.home.as_str(), by_name.shell.as_str()),
            ("/srv", "/bin/sh")
        );
        assert_eq!(resolve("33", PASSWD, GROUP).unwrap(), by_name);
    }

    #[test]
    fn groups_are_taken_by_name_and_by_number() {
        assert_eq!(resolve("root:staff", PASSWD, GROUP).unwrap().gid, 50);
        assert_eq!(resolve("0:77", PASSWD, GROUP).unwrap().gid, 77);
    }

    #[test]
    fn numbers_need_no_entry_and_names_do() {
        let nobody = resolve("1234:5", "", "").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.groups), (1234, 5, vec![5]));
        assert_eq!(resolve("0", "", "").unwrap().home, "/root");
        for wrong in ["nosuch", "web:nosuch", "", ":", "-1", "4294967296"] {
            assert!(resolve(wrong, PASSWD, GROUP).is_err(), "{wrong}");
        }
    }
}
