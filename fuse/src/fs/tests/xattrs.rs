//! Extended attributes, and what files without a name keep.

use atoll_proto::namespace::XattrMode;

use super::*;

const ROOT_USER: Caller = Caller { uid: 0, gid: 0 };

async fn set(fs: &Fs, inode: InodeId, name: &str, mode: XattrMode) -> Result<(), FsError> {
    fs.setxattr(inode, name.into(), Bytes::from_static(b"value"), mode, ME).await
}

async fn value(fs: &Fs, inode: InodeId, name: &str) -> Result<Bytes, FsError> {
    fs.getxattr(inode, name.into()).await
}

#[test]
fn attributes_are_set_listed_and_removed() {
    run(async {
        let fake = Fake::new();
        let (fs, other) = (fs(&fake), fs(&fake));
        let inode = save(&fs, "f", b"x").await;
        assert!(matches!(value(&fs, inode, "user.a").await, Err(FsError::NoAttribute)));
        let missing = set(&fs, inode, "user.a", XattrMode::Replace).await;
        assert!(matches!(missing, Err(FsError::NoAttribute)));
        set(&fs, inode, "user.a", XattrMode::Create).await.unwrap();
        set(&fs, inode, "trusted.b", XattrMode::Set).await.unwrap();
        let again = set(&fs, inode, "user.a", XattrMode::Create).await.unwrap_err();
        assert_eq!(errno::of(&again), libc::EEXIST);
        assert_eq!(value(&fs, inode, "user.a").await.unwrap(), "value");
        assert_eq!(fs.listxattr(inode, ME).await.unwrap(), "user.a\0");
        assert_eq!(fs.listxattr(inode, ROOT_USER).await.unwrap(), "trusted.b\0user.a\0");
        assert!(matches!(
            set(&fs, inode, "system.nfs4_acl", XattrMode::Set).await,
            Err(FsError::Unsupported)
        ));
        assert_eq!(value(&other, inode, "user.a").await.unwrap(), "value");
        for name in ["user.a", "trusted.b"] {
            fs.removexattr(inode, name.into()).await.unwrap();
        }
        let error = fs.removexattr(inode, "user.a".into()).await.unwrap_err();
        assert_eq!(errno::of(&error), libc::ENODATA);
        // Removing rules that are not there is fine.
        fs.removexattr(inode, "system.posix_acl_access".into()).await.unwrap();
    });
}

#[test]
fn a_list_leaves_directories_their_group_and_takes_it_from_programs_of_others() {
    // For the owner, the group and others, as the kernel lays them out.
    let list = [&[2, 0, 0, 0][..], &[1, 0, 7, 0], &[255; 4], &[4, 0, 5, 0], &[255; 4]].concat();
    let list = Bytes::from([&list[..], &[32, 0, 0, 0], &[255; 4]].concat());
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let bits = NewMode::exactly(0o2770);
        let node = NewNode::Directory;
        let dir = fs.make(ROOT, "d".into(), node, bits, ME).await.unwrap().inode;
        let file = save(&fs, "f", b"x").await;
        for inode in [dir, file] {
            let others = SetAttrs { gid: Some(99), mode: Some(0o2770), ..SetAttrs::default() };
            fs.setattr(inode, None, others).await.unwrap();
            let name = "system.posix_acl_access";
            fs.setxattr(inode, name.into(), list.clone(), XattrMode::Set, ME).await.unwrap();
        }
        assert_eq!(fs.getattr(dir).await.unwrap().permissions(), 0o2750);
        assert_eq!(fs.getattr(file).await.unwrap().permissions(), 0o750);
    });
}

#[test]
fn asking_for_what_hardly_any_file_has_costs_no_request() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let inode = save(&fs, "f", b"x").await;
        fs.lookup(ROOT, "f".into()).await.unwrap();
        let before = fake.requests.load(Ordering::Relaxed);
        for _ in 0..10 {
            assert!(value(&fs, inode, "system.posix_acl_access").await.is_err());
            assert!(fs.listxattr(inode, ME).await.unwrap().is_empty());
        }
        assert_eq!(fake.requests.load(Ordering::Relaxed), before);
    });
}

#[test]
fn a_file_without_a_name_keeps_the_attributes_it_is_given() {
    run(async {
        let fake = Fake::new();
        let fs = fs(&fake);
        let (inode, handle) = create(&fs, "f").await;
        fs.unlink(ROOT, "f".into()).await.unwrap();
        let set = SetAttrs {
            mode: Some(0o640),
            uid: Some(9),
            mtime_ns: Some(5),
            drop_privileges: true,
            ..SetAttrs::default()
        };
        fs.setattr(inode, Some(handle), set).await.unwrap();
        let attr = fs.getattr(inode).await.unwrap();
        assert_eq!((attr.mode, attr.uid, attr.mtime_ns, attr.nlink), (0o640, 9, 5, 0));
        assert!(fs.listxattr(inode, ME).await.unwrap().is_empty());
        fs.release(handle);
        assert!(fs.getattr(inode).await.is_err());
    });
}
