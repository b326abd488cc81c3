/* For builds with the address sanitizer only: suppresses leaks of Open MPI at exit. It closes its plugins before the
 * leak check, which then can't name them in a suppression; so dlclose does nothing, and the libraries are listed. */
int dlclose(void *handle);
const char *__lsan_default_suppressions(void);

__attribute__((visibility("default"))) int dlclose(void *handle)
{
    (void)handle;
    return 0;
}

__attribute__((visibility("default"))) const char *__lsan_default_suppressions(void)
{
    return "leak:libmpi.so\nleak:libopen-pal.so\nleak:libopen-rte.so\nleak:libpmix\nleak:libhwloc\nleak:libevent\nleak:"
           "mca_\n"
           "leak:libfabric\nleak:libucp\nleak:libucs\nleak:libucm\nleak:libpsm\nleak:__vasprintf_internal\nleak:libnl\n"
           "leak:libibverbs\n";
}
