/* Files of a folder, many in one call: their statuses, and the content of small ones. Optional:
 * jobs/storage/folder_files.py has the same functions in Python, and the tests compare them.
 *
 * Neither function makes a decision: a file that is not as expected is only marked. The code in
 * Python looks at that one by itself, and reports what is wrong.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK 512 /* bytes, the unit of st_blocks (stat(2)) */

struct file {
    const char *name;
    Py_ssize_t size;
    long long mtime_ns;
    int mode;
    int is_right; /* a regular file; of a file to read: as it was listed, and read */
};

static long long
nanoseconds(struct timespec time)
{
    return (long long)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int
open_folder(const char *path)
{
    return open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* The arguments: the path of the folder, and a sequence, as a new tuple, which holds its items
 * whatever other threads do to the sequence. Returns a file for each item, or NULL. */
static struct file *
files_of(PyObject *args, const char **path, PyObject **items)
{
    PyObject *sequence;
    if (!PyArg_ParseTuple(args, "yO", path, &sequence))
        return NULL;
    *items = PySequence_Tuple(sequence);
    if (*items == NULL)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(*items);
    struct file *files = PyMem_Calloc(count ? count : 1, sizeof(struct file));
    if (files == NULL)
        PyErr_NoMemory();
    return files;
}

static void
look_at(int folder, struct file *file)
{
    struct stat status;
    if (fstatat(folder, file->name, &status, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(status.st_mode))
        return;
    file->size = (Py_ssize_t)status.st_size;
    file->mode = status.st_mode & 07777;
    file->mtime_ns = nanoseconds(status.st_mtim);
    file->is_right = 1;
}

PyDoc_STRVAR(stat_files_doc,
"stat_files(folder, names)\n--\n\n"
"Statuses of files, without the interpreter lock; see ``jobs.storage.folder_files``.");

static PyObject *
stat_files(PyObject *module, PyObject *args)
{
    const char *path;
    PyObject *names = NULL, *result = NULL;
    struct file *files = files_of(args, &path, &names);
    if (files == NULL)
        goto end;
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    for (Py_ssize_t at = 0; at < count; at++) {
        char *name;
        if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(names, at), &name, NULL) < 0)
            goto end;
        files[at].name = name;
    }
    Py_BEGIN_ALLOW_THREADS
    int folder = open_folder(path);
    for (Py_ssize_t at = 0; folder >= 0 && at < count; at++)
        look_at(folder, &files[at]);
    if (folder >= 0)
        close(folder);
    Py_END_ALLOW_THREADS
    result = PyList_New(count);
    for (Py_ssize_t at = 0; result != NULL && at < count; at++) {
        const struct file *file = &files[at];
        PyObject *status = file->is_right
            ? Py_BuildValue("(niL)", file->size, file->mode, file->mtime_ns)
            : Py_BuildValue("");
        if (status == NULL)
            Py_CLEAR(result);
        else
            PyList_SET_ITEM(result, at, status);
    }
end:
    PyMem_Free(files);
    Py_XDECREF(names);
    return result;
}

/* Read a file; one look at it after reading is enough: it has not changed since it was listed. */
static void
read_file(int folder, struct file *file, char *to)
{
    struct stat status;
    /* Without waiting for the writer of a pipe, which is found to be no file then. */
    int fd = openat(folder, file->name, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t count = read(fd, to, (size_t)file->size);
    file->is_right = count == file->size && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
                     status.st_size == file->size &&
                     nanoseconds(status.st_mtim) == file->mtime_ns &&
                     (long long)status.st_blocks * BLOCK >= file->size;
    close(fd);
}

PyDoc_STRVAR(read_files_doc,
"read_files(folder, files)\n--\n\n"
"Contents of files, without the interpreter lock; see ``jobs.storage.folder_files``.");

static PyObject *
read_files(PyObject *module, PyObject *args)
{
    const char *path;
    PyObject *items = NULL, *data = NULL, *right = NULL, *result = NULL;
    struct file *files = files_of(args, &path, &items);
    if (files == NULL)
        goto end;
    Py_ssize_t count = PyTuple_GET_SIZE(items), total = 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        struct file *file = &files[at];
        PyObject *item = PyTuple_GET_ITEM(items, at);
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a file is to be a tuple of three");
            goto end;
        }
        if (!PyArg_ParseTuple(item, "ynL", &file->name, &file->size, &file->mtime_ns))
            goto end;
        if (file->size < 0 || file->size > PY_SSIZE_T_MAX - total) {
            PyErr_SetString(PyExc_ValueError, "a size is negative or too large");
            goto end;
        }
        total += file->size;
    }
    data = PyBytes_FromStringAndSize(NULL, total);
    if (data == NULL)
        goto end;
    char *to = PyBytes_AS_STRING(data);
    Py_BEGIN_ALLOW_THREADS
    int folder = open_folder(path);
    for (Py_ssize_t at = 0; at < count; at++) {
        struct file *file = &files[at];
        if (folder >= 0)
            read_file(folder, file, to);
        if (!file->is_right)
            memset(to, 0, (size_t)file->size);
        to += file->size;
    }
    if (folder >= 0)
        close(folder);
    Py_END_ALLOW_THREADS
    right = PyList_New(count);
    for (Py_ssize_t at = 0; right != NULL && at < count; at++)
        PyList_SET_ITEM(right, at, PyBool_FromLong(files[at].is_right));
    if (right != NULL)
        result = PyTuple_Pack(2, data, right);
end:
    Py_XDECREF(data);
    Py_XDECREF(right);
    PyMem_Free(files);
    Py_XDECREF(items);
    return result;
}

static PyMethodDef methods[] = {
    {"stat_files", stat_files, METH_VARARGS, stat_files_doc},
    {"read_files", read_files, METH_VARARGS, read_files_doc},
    {NULL, NULL, 0, NULL},
};

/* SOURCE_CRC32, from setup.py: of this file, so that the tests notice an old build. */
static int
add_source(PyObject *module)
{
    return PyModule_AddIntConstant(module, "SOURCE_CRC32", SOURCE_CRC32);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_source},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "jobs._folder_files",
    .m_doc = "Compiled forms of the functions of jobs.storage.folder_files.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__folder_files(void)
{
    return PyModuleDef_Init(&definition);
}
